//! The configuration of a log router (FireLens), as the ECS agent writes it for Fluent Bit and Fluentd. Pure.
//!
//! Inputs on a socket and on the forward port; facts of the task in every record; one output a container, from its
//! `logConfiguration`. Values of `secretOptions` are not in the text: it names variables of the router's container.

use super::{Input, LowerError, NetworkMode, items, text};
use serde_json::Value;
use std::collections::BTreeMap;

/// Where the router's socket is, in its container.
pub(super) const SOCKET_FOLDER: &str = "/var/run";
/// Where a configuration that comes from S3 is put, below the router's folder.
const EXTERNAL: &str = "external.conf";
/// Options that are the driver's, not the output's.
const DRIVER_OPTIONS: [&str; 3] = ["log-driver-buffer-limit", "include-pattern", "exclude-pattern"];

/// What differs between the two routers.
struct Kind {
    name: &'static str,
    /// Option of the output that names its plug-in.
    output: &'static str,
    /// The configuration file in the router's container.
    file: &'static str,
    /// Its folder.
    folder: &'static str,
}

const KINDS: [Kind; 2] = [
    Kind {
        name: "fluentbit",
        output: "Name",
        file: "/fluent-bit/etc/fluent-bit.conf",
        folder: "/fluent-bit/etc",
    },
    Kind { name: "fluentd", output: "@type", file: "/fluentd/etc/fluent.conf", folder: "/fluentd/etc" },
];

/// A router's files and variables.
#[derive(Debug)]
pub(super) struct Router {
    /// The configuration's path in the container.
    pub path: &'static str,
    /// Its text.
    pub text: String,
    /// Variables with secret values: name, `valueFrom`.
    pub secrets: Vec<(String, String)>,
    /// A file of S3: its path in the container, its ARN.
    pub external: Option<(String, String)>,
}

/// One section: what begins and ends it, and its lines.
fn section(out: &mut String, kind: &Kind, head: (&str, &str), lines: &[(&str, &str)]) {
    let (bit, end) = head;
    if kind.name == "fluentbit" {
        out.push_str(&format!("[{bit}]\n"));
    } else {
        out.push_str(&format!("<{end}>\n"));
    }
    for (name, value) in lines {
        out.push_str(&format!("    {name} {value}\n"));
    }
    if kind.name == "fluentd" {
        out.push_str(&format!("</{}>\n", end.split(' ').next().unwrap_or_default()));
    }
    out.push('\n');
}

fn inputs(out: &mut String, kind: &Kind, mode: NetworkMode) {
    let socket = format!("{SOCKET_FOLDER}/fluent.sock");
    let bind = if mode == NetworkMode::Bridge { "0.0.0.0" } else { "127.0.0.1" };
    let port = mode != NetworkMode::Host;
    match kind.name {
        "fluentbit" => {
            section(out, kind, ("INPUT", ""), &[("Name", "forward"), ("unix_path", &socket)]);
            if port {
                section(
                    out,
                    kind,
                    ("INPUT", ""),
                    &[("Name", "forward"), ("Listen", bind), ("Port", "24224")],
                );
            }
        }
        _ => {
            section(out, kind, ("", "source"), &[("@type", "unix"), ("path", &socket)]);
            if port {
                section(
                    out,
                    kind,
                    ("", "source"),
                    &[("@type", "forward"), ("bind", bind), ("port", "24224")],
                );
            }
        }
    }
}

fn facts(out: &mut String, kind: &Kind, input: &Input) {
    let (task, definition) = (input.task.spec, input.definition);
    let cluster = text(&task["clusterArn"]).rsplit('/').next().unwrap_or_default();
    let definition = format!("{}:{}", text(&definition["family"]), definition["revision"]);
    let facts = [
        ("ecs_cluster", cluster),
        ("ecs_task_arn", text(&task["taskArn"])),
        ("ecs_task_definition", &definition),
    ];
    if kind.name == "fluentbit" {
        let records: Vec<String> = facts.iter().map(|(name, value)| format!("{name} {value}")).collect();
        let mut lines = vec![("Name", "record_modifier"), ("Match", "*")];
        lines.extend(records.iter().map(|r| ("Record", r.as_str())));
        return section(out, kind, ("FILTER", ""), &lines);
    }
    let mut lines = vec![("@type", "record_transformer"), ("<record>", "")];
    lines.extend(facts);
    lines.push(("</record>", ""));
    section(out, kind, ("", "filter **"), &lines);
}

/// Lines that match (or do not) go on.
fn pattern(out: &mut String, kind: &Kind, matched: &str, (include, wanted): (bool, &str)) {
    if kind.name == "fluentbit" {
        let rule = format!("log {wanted}");
        let name = if include { "Regex" } else { "Exclude" };
        return section(out, kind, ("FILTER", ""), &[("Name", "grep"), ("Match", matched), (name, &rule)]);
    }
    let (open, close) = if include { ("<regexp>", "</regexp>") } else { ("<exclude>", "</exclude>") };
    let rule = format!("/{wanted}/");
    let lines = [("@type", "grep"), (open, ""), ("key", "log"), ("pattern", &rule), (close, "")];
    section(out, kind, ("", &format!("filter {matched}")), &lines);
}

/// A container's output. The plug-in must be named.
fn output(
    out: &mut String,
    kind: &Kind,
    (index, container): (usize, &Value),
    secrets: &mut Vec<(String, String)>,
) -> Result<(), LowerError> {
    let name = text(&container["name"]);
    let config = &container["logConfiguration"];
    let options: BTreeMap<&str, &str> =
        config["options"].as_object().into_iter().flatten().map(|(k, v)| (k.as_str(), text(v))).collect();
    let star = if kind.name == "fluentbit" { "*" } else { "**" };
    let matched = format!("{name}-firelens{star}");
    let Some(plugin) = options.get(kind.output) else {
        // Without options the router's own configuration says where lines go.
        if options.is_empty() {
            return Ok(());
        }
        return Err(LowerError::Invalid(format!(
            "unable to generate firelens config file: unable to apply log options of container {name} to firelens \
             config: missing output key {} which is required for firelens configuration of type {}",
            kind.output, kind.name
        )));
    };
    for (option, include) in [("include-pattern", true), ("exclude-pattern", false)] {
        options.get(option).iter().for_each(|wanted| pattern(out, kind, &matched, (include, wanted)));
    }
    let mut lines = vec![(kind.output.to_string(), (*plugin).to_string())];
    if kind.name == "fluentbit" {
        lines.push(("Match".into(), matched.clone()));
    }
    let plain = options.iter().filter(|(n, _)| **n != kind.output && !DRIVER_OPTIONS.contains(n));
    lines.extend(plain.map(|(n, v)| ((*n).to_string(), (*v).to_string())));
    for secret in items(&config["secretOptions"]) {
        let option = text(&secret["name"]);
        let variable = format!("{option}_{index}");
        let value = match kind.name {
            "fluentbit" => format!("${{{variable}}}"),
            _ => format!("\"#{{ENV['{variable}']}}\""),
        };
        lines.push((option.to_string(), value));
        secrets.push((variable, text(&secret["valueFrom"]).to_string()));
    }
    let lines: Vec<(&str, &str)> = lines.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    section(out, kind, ("OUTPUT", &format!("match {matched}")), &lines);
    Ok(())
}

/// What a router's container is given; `None` for other containers.
///
/// # Errors
/// An option is missing, or asks for what is not done.
pub(super) fn router(input: &Input, container: &Value) -> Result<Option<Router>, LowerError> {
    let config = &container["firelensConfiguration"];
    let Some(kind) = KINDS.iter().find(|k| k.name == text(&config["type"])) else { return Ok(None) };
    let option = |name: &str| text(&config["options"][name]);
    let mut router = Router { path: kind.file, text: String::new(), secrets: Vec::new(), external: None };
    let out = &mut router.text;
    inputs(out, kind, NetworkMode::of(input.definition));
    if option("enable-ecs-log-metadata") != "false" {
        facts(out, kind, input);
    }
    let include = if kind.name == "fluentbit" { "@INCLUDE" } else { "@include" };
    match (option("config-file-type"), option("config-file-value")) {
        ("", _) => {}
        ("file", path) => out.push_str(&format!("{include} {path}\n\n")),
        ("s3", arn) => {
            let path = format!("{}/{EXTERNAL}", kind.folder);
            out.push_str(&format!("{include} {path}\n\n"));
            router.external = Some((path, arn.to_string()));
        }
        (other, _) => {
            return Err(LowerError::Invalid(format!("invalid value {other} for option config-file-type")));
        }
    }
    let containers = items(&input.definition["containerDefinitions"]).iter().enumerate();
    for (index, one) in containers.filter(|(_, c)| text(&c["logConfiguration"]["logDriver"]) == "awsfirelens")
    {
        output(&mut router.text, kind, (index, one), &mut router.secrets)?;
    }
    Ok(Some(router))
}
