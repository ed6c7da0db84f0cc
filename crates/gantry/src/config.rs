//! Settings: one table serves the command line, the config file (`name = value` lines) and `--help`.
//!
//! Later sources win: defaults, then the file named by `--config`, then flags.

use anyhow::{Context, Result, bail};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// Longest instance name: it prefixes network devices, whose names have 15 characters in all.
const NAME_MAX: usize = 8;

/// One setting: name, default ("" = found out at start), meaning.
struct Setting {
    name: &'static str,
    default: &'static str,
    help: &'static str,
    set: fn(&mut Config, &str) -> Result<()>,
}

/// Upstream's settings of the graceful node shutdown.
#[derive(Clone, Debug, Default)]
pub struct ShutdownGrace {
    /// All pods; 0: a shutdown is not offered.
    pub all: String,
    /// The part of it that critical pods have.
    pub critical: String,
    /// In place of both: `priority=time,…`.
    pub by_priority: String,
}

/// Everything `gantry up` can be told.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Prefix of every cgroup, device, nftables table and run folder of this instance.
    pub name: String,
    /// Durable data.
    pub data_dir: PathBuf,
    /// The folder that drivers of volumes and devices call `/var/lib/kubelet`; `None`: one in the data folder, which
    /// pods see under that name.
    pub kubelet_dir: Option<PathBuf>,
    /// Where objects are kept: "" = in the data folder, or the address of an etcd.
    pub store: String,
    /// Upstream's EncryptionConfiguration file; "" for none.
    pub encryption_config: String,
    /// Address the API server listens on.
    pub bind: Option<Ipv4Addr>,
    /// Port of the Kubernetes API.
    pub port: u16,
    /// Port of the node agent's API.
    pub node_port: u16,
    /// Node name; the host's name by default.
    pub node_name: String,
    /// Node address; that of the default route's device by default.
    pub node_ip: Option<Ipv4Addr>,
    /// Addresses of pods, `a.b.c.d/n`.
    pub pod_cidr: String,
    /// Addresses of services, `a.b.c.d/n`.
    pub service_cidr: String,
    /// Domain of cluster DNS names.
    pub cluster_domain: String,
    /// Addresses for Services of type LoadBalancer, `a.b.c.d-a.b.c.e`; "" = the node's own.
    pub lb_pool: String,
    /// Pods this node takes at most.
    pub max_pods: u32,
    /// Processes and threads a pod has at most; 0: as many as the kernel allows.
    pub pod_pids_max: i64,
    /// Folder with manifests of static pods; "" for none.
    pub pod_manifests: String,
    /// OCI runtimes for RuntimeClass handlers, `name=path,name=path`.
    pub runtimes: String,
    /// Port of the registry on the loopback; 0: none.
    pub registry_port: u16,
    /// Registries asked before others: `domain=url,domain=url`.
    pub registry_mirrors: String,
    /// Registries spoken to in the clear: `host:port,host`.
    pub insecure_registries: String,
    /// A Docker `config.json` with the node's own credentials for registries; "" for none.
    pub registry_auth: String,
    /// A file with users of the registry, `name:password[:pull]` a line; "" for none.
    pub registry_users: String,
    /// Port of the AWS services; 0: none.
    pub aws_port: u16,
    /// Whose account the configured keys are: 12 digits.
    pub aws_account: String,
    /// The region of those who name none.
    pub aws_region: String,
    /// Access keys: `key:secret[@account],…`; the generated pair is always good.
    pub aws_keys: String,
    /// Address that AWS load balancers listen at; the node's by default.
    pub elb_address: Option<Ipv4Addr>,
    /// Addresses that AWS load balancers have of their own, first-last; "" for none.
    pub elb_pool: String,
    /// Minutes that stopped ECS tasks stay visible, 30 days at most.
    pub task_retention: u16,
    /// Seconds after which a task of an ECS service counts as healthy when nothing checks it.
    pub service_settle: u16,
    /// Folder that stands for EFS file systems, one folder each; "" refuses them.
    pub efs_root: String,
    /// When pods go at once because the node runs short, as the kubelet's `--eviction-hard`; `none`: never.
    pub eviction_hard: String,
    /// The same with a grace period.
    pub eviction_soft: String,
    /// Grace periods of the soft ones, `signal=duration`.
    pub eviction_soft_grace: String,
    /// How much more must be free before it is enough, `signal=amount`.
    pub eviction_reclaim: String,
    /// How long a pressure condition stays after its cause, in seconds.
    pub eviction_transition: u32,
    /// Longest grace in seconds of a pod that goes for a soft threshold.
    pub eviction_pod_grace: u32,
    /// How long pods have when the node goes down.
    pub shutdown_grace: ShutdownGrace,
    /// Audit policy file; "" records nothing.
    pub audit_policy: String,
    /// Audit log file, `-` for the standard output; "" for none.
    pub audit_log: String,
    /// Its size in MiB at which it is put aside, how many old ones stay, how many days.
    pub audit_log_size: u64,
    /// Old audit logs that stay; 0: all.
    pub audit_log_backups: usize,
    /// Days that old audit logs stay; 0: for ever.
    pub audit_log_age: u64,
    /// Kubeconfig of a server that takes audit events; "" for none.
    pub audit_webhook: String,
    /// Are pods spread over nodes, or nodes filled one after the other?
    pub scheduler_profile: sched::Profiles,
    /// A KubeSchedulerConfiguration; `None`: the profile above.
    pub scheduler_file: Option<sched::config::Configuration>,
    /// How service-account tokens are signed.
    pub token_algorithm: auth::tokens::Algorithm,
    /// Who issues them, an https URL; "": the cluster's own name.
    pub token_issuer: String,
    /// An AuthenticationConfiguration file; "" for none.
    pub authentication_config: String,
    /// Upstream's `--oidc-*` flags.
    pub oidc: apiserver::OidcFlags,
    /// Kubeconfig of a server that reviews tokens; "" for none.
    pub authentication_webhook: String,
    /// An AuthorizationConfiguration file; "" for none.
    pub authorization_config: String,
    /// Kubeconfig of a server that reviews access where roles allow nothing; "" for none.
    pub authorization_webhook: String,
    /// Admission plug-ins that run though they usually do not, and the reverse; names between commas.
    pub plugins_on: String,
    /// Those that do not.
    pub plugins_off: String,
    /// Must pods fit a PodSecurityPolicy?
    pub pod_security_policy: bool,
    /// Are requests without credentials the anonymous user's?
    pub anonymous_auth: bool,
    /// Log filter, as in `info,apiserver=debug`.
    pub log: String,
}

macro_rules! setting {
    ($name:literal, $default:literal, $help:literal, $($field:ident).+ = $parse:expr) => {
        Setting {
            name: $name,
            default: $default,
            help: $help,
            set: |config, text| {
                let parse: fn(&str) -> Result<_> = $parse;
                config.$($field).+ = parse(text)?;
                Ok(())
            },
        }
    };
}

fn text(value: &str) -> Result<String> {
    Ok(value.to_string())
}

fn number<T: std::str::FromStr<Err = std::num::ParseIntError>>(value: &str) -> Result<T> {
    value.parse().with_context(|| format!("{value:?} is not a number in range"))
}

fn file(path: &str) -> Result<String> {
    if path.is_empty() {
        return Ok(String::new());
    }
    std::fs::read_to_string(path).with_context(|| path.to_string())
}

fn truth(value: &str) -> Result<bool> {
    value.parse().with_context(|| format!("{value:?} is neither true nor false"))
}

fn address(value: &str) -> Result<Option<Ipv4Addr>> {
    match value {
        "" => Ok(None),
        _ => Ok(Some(value.parse().with_context(|| format!("{value:?} is not an IPv4 address"))?)),
    }
}

fn instance_name(value: &str) -> Result<String> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if value.is_empty() || value.len() > NAME_MAX || !value.chars().all(good) {
        bail!("an instance name has 1 to {NAME_MAX} characters of a-z and 0-9, not {value:?}");
    }
    Ok(value.to_string())
}

fn profile(value: &str) -> Result<sched::Profiles> {
    match value {
        "spread" => Ok(sched::Profiles::default()),
        "density" => Ok(sched::Profiles::density()),
        _ => bail!("{value:?} is neither spread nor density"),
    }
}

fn scheduler_file(path: &str) -> Result<Option<sched::config::Configuration>> {
    let text = file(path)?;
    let read = |text: &str| sched::config::read(text.as_bytes()).map_err(|e| anyhow::anyhow!("{path}: {e}"));
    Some(text).filter(|t| !t.is_empty()).map(|t| read(&t)).transpose()
}

/// Settings that all nodes of a cluster share: a node that joins takes them from the cluster.
const SHARED: [&str; 3] = ["pod-cidr", "service-cidr", "cluster-domain"];
/// In the data folder: the name of the instance that it is of, for commands that are told the folder only.
const NAME_FILE: &str = "instance-name";
/// Flags of commands that need no value.
const SWITCHES: [&str; 4] = ["drain", "follow", "insecure-trust-first", "timestamps"];

const SETTINGS: &[Setting] = &[
    setting!("name", "gantry", "instance: prefix of every cgroup, device and table", name = instance_name),
    setting!("data-dir", "/var/lib/gantry", "durable data", data_dir = |v| Ok(std::path::absolute(v)?)),
    setting!(
        "kubelet-dir",
        "",
        "folder of volume and device drivers, seen by all under its name (default: in data-dir, seen as /var/lib/kubelet)",
        kubelet_dir = |v| if v.is_empty() { Ok(None) } else { Ok(Some(std::path::absolute(v)?)) }
    ),
    setting!(
        "store",
        "",
        "etcd://host:port[,host:port…] or etcd+tls://…?ca=&cert=&key= (default: in data-dir)",
        store = text
    ),
    setting!(
        "encryption-provider-config",
        "",
        "EncryptionConfiguration file: what is encrypted at rest beside AWS's secrets",
        encryption_config = text
    ),
    setting!("bind", "0.0.0.0", "address the Kubernetes API listens on", bind = address),
    setting!("port", "6443", "port of the Kubernetes API", port = number),
    setting!("node-port", "10250", "port of the node agent's API", node_port = number),
    setting!("node-name", "", "node name (default: the host's name)", node_name = text),
    setting!("node-ip", "", "node address (default: of the default route)", node_ip = address),
    setting!("pod-cidr", "10.244.0.0/16", "addresses of pods", pod_cidr = text),
    setting!("service-cidr", "10.96.0.0/16", "addresses of services", service_cidr = text),
    setting!("cluster-domain", "cluster.local", "domain of cluster DNS names", cluster_domain = text),
    setting!(
        "lb-pool",
        "",
        "addresses for LoadBalancer services, first-last (default: the node's own)",
        lb_pool = text
    ),
    setting!("max-pods", "250", "pods this node takes at most", max_pods = number),
    // A fork bomb otherwise takes the whole host's process numbers.
    setting!("pod-manifest-path", "", "folder with manifests of static pods", pod_manifests = text),
    setting!("pod-pids-max", "4096", "processes and threads of a pod, 0 for no limit", pod_pids_max = number),
    setting!("runtimes", "", "other OCI runtimes by handler: name=path,name=path", runtimes = text),
    setting!(
        "registry-port",
        "5000",
        "port of the registry on the loopback, 0 for none",
        registry_port = number
    ),
    setting!(
        "registry-mirrors",
        "",
        "asked before a registry: domain=url,domain=url",
        registry_mirrors = text
    ),
    setting!("insecure-registries", "", "registries without TLS: host:port,host", insecure_registries = text),
    setting!(
        "registry-auth",
        "",
        "Docker config.json with the node's registry credentials",
        registry_auth = text
    ),
    setting!(
        "registry-users",
        "",
        "file of users of the registry on the node's address: name:password[:pull]",
        registry_users = text
    ),
    setting!("aws-port", "4566", "port of the AWS services, 0 for none", aws_port = number),
    setting!("aws-account", "123456789012", "AWS account of the configured keys", aws_account = text),
    setting!("aws-region", "us-east-1", "AWS region of those who name none", aws_region = text),
    setting!(
        "aws-keys",
        "testing:testing",
        "access keys, key:secret[@account],… (secrets under 16 characters: on this machine only)",
        aws_keys = text
    ),
    setting!(
        "elb-address",
        "",
        "the one address that AWS load balancers listen at, 0.0.0.0 for all (default: one each, and the node's)",
        elb_address = address
    ),
    setting!(
        "elb-pool",
        "10.97.0.1-10.97.0.254",
        "addresses of AWS load balancers on this host, first-last; \"\": all share the node's",
        elb_pool = text
    ),
    setting!(
        "task-retention",
        "60",
        "minutes that stopped ECS tasks stay visible (43200, 30 days, at most)",
        task_retention = number
    ),
    setting!(
        "service-settle",
        "40",
        "seconds until a task of an ECS service counts as healthy when nothing checks it (AWS: 40)",
        service_settle = number
    ),
    setting!("efs-root", "", "folder that stands for EFS file systems, one each", efs_root = text),
    setting!(
        "eviction-hard",
        "memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,imagefs.available<15%,imagefs.inodesFree<5%",
        "pods go when less is left; none: never",
        eviction_hard = text
    ),
    setting!("eviction-soft", "", "pods go when less is left for a while", eviction_soft = text),
    setting!(
        "eviction-soft-grace",
        "",
        "how long, by signal: memory.available=90s",
        eviction_soft_grace = text
    ),
    setting!(
        "eviction-reclaim",
        "",
        "least amount to free, by signal: nodefs.available=500Mi",
        eviction_reclaim = text
    ),
    setting!(
        "eviction-transition",
        "300",
        "seconds that a pressure condition stays after its cause",
        eviction_transition = number
    ),
    setting!(
        "eviction-pod-grace",
        "0",
        "longest grace in seconds of a pod that goes for a soft threshold",
        eviction_pod_grace = number
    ),
    setting!(
        "shutdown-grace-period",
        "30s",
        "how long pods have when the node goes down (gantry shutdown)",
        shutdown_grace.all = text
    ),
    setting!(
        "shutdown-grace-period-critical-pods",
        "10s",
        "the part of it that is kept for critical pods",
        shutdown_grace.critical = text
    ),
    setting!(
        "shutdown-grace-period-by-pod-priority",
        "",
        "in place of both: 0=20s,100000=60s,2000000000=10s",
        shutdown_grace.by_priority = text
    ),
    setting!("audit-policy", "", "audit policy file (default: nothing is recorded)", audit_policy = text),
    setting!("audit-log", "", "audit log, - for the standard output", audit_log = text),
    setting!("audit-log-size", "100", "MiB at which the audit log is put aside", audit_log_size = number),
    setting!("audit-log-backups", "10", "old audit logs that stay, 0 for all", audit_log_backups = number),
    setting!("audit-log-age", "0", "days that old audit logs stay, 0 for ever", audit_log_age = number),
    setting!("audit-webhook", "", "kubeconfig of a server that takes audit events", audit_webhook = text),
    setting!(
        "scheduler-profile",
        "spread",
        "spread: pods over all nodes; density: nodes filled one after the other",
        scheduler_profile = profile
    ),
    setting!(
        "scheduler-config",
        "",
        "KubeSchedulerConfiguration file: profiles, plug-ins, weights, arguments",
        scheduler_file = scheduler_file
    ),
    setting!(
        "service-account-signing-algorithm",
        "RS256",
        "RS256, as relying parties expect, or ES256, which takes less",
        token_algorithm = |name| auth::tokens::Algorithm::named(name)
            .with_context(|| format!("{name:?} is neither RS256 nor ES256"))
    ),
    setting!(
        "service-account-issuer",
        "",
        "https URL that service-account tokens name (default: the cluster's own)",
        token_issuer = |url| match url {
            "" => text(url),
            url if url.starts_with("https://") => text(url),
            _ => bail!("{url:?} is no https URL"),
        }
    ),
    setting!(
        "authentication-config",
        "",
        "AuthenticationConfiguration file: OpenID providers, anonymous limits; followed",
        authentication_config = text
    ),
    setting!("oidc-issuer-url", "", "OpenID provider whose tokens are taken", oidc.issuer_url = text),
    setting!("oidc-client-id", "", "audience of its tokens", oidc.client_id = text),
    setting!("oidc-username-claim", "sub", "claim with the user's name", oidc.username_claim = text),
    setting!(
        "oidc-username-prefix",
        "",
        "put before it, - for nothing (default: issuer#, nothing for email)",
        oidc.username_prefix = text
    ),
    setting!("oidc-groups-claim", "", "claim with the user's groups", oidc.groups_claim = text),
    setting!("oidc-groups-prefix", "", "put before each group", oidc.groups_prefix = text),
    setting!("oidc-required-claim", "", "claims that must be: key=value,…", oidc.required_claims = text),
    setting!("oidc-ca-file", "", "PEM authority of the provider's certificate", oidc.ca_pem = file),
    setting!(
        "authentication-webhook",
        "",
        "kubeconfig of a server that reviews tokens",
        authentication_webhook = text
    ),
    setting!(
        "authorization-config",
        "",
        "AuthorizationConfiguration file: who has a say about access, in order; followed",
        authorization_config = text
    ),
    setting!(
        "authorization-webhook",
        "",
        "kubeconfig of a server that reviews access where roles allow nothing",
        authorization_webhook = text
    ),
    setting!(
        "enable-admission-plugins",
        "",
        "admission plug-ins besides the usual: AlwaysPullImages,PodNodeSelector,…",
        plugins_on = text
    ),
    setting!("disable-admission-plugins", "", "admission plug-ins that do not run", plugins_off = text),
    setting!(
        "legacy-pod-security-policy",
        "false",
        "PodSecurityPolicy (policy/v1beta1) is served and enforced, as before 1.25",
        pod_security_policy = truth
    ),
    setting!("anonymous-auth", "true", "requests without credentials are taken", anonymous_auth = truth),
    setting!("log", "warn", "log filter", log = text),
];

impl Config {
    /// What the scheduler does: as the file says, else by the built-in profiles.
    pub fn scheduler(&self) -> sched::config::Configuration {
        let profiles = self.scheduler_profile.clone();
        let built_in = || sched::config::Configuration { profiles, ..Default::default() };
        self.scheduler_file.clone().unwrap_or_else(built_in)
    }

    /// Reads defaults, then the file of `--config`, then flags; what is no flag is returned in order.
    pub fn from_args(args: &[String]) -> Result<(Config, Vec<String>)> {
        Self::with_flags(args, |_| false)
    }

    /// The same where commands have flags of their own: those are returned among the rest, as `--name=value`.
    pub fn with_flags(args: &[String], own: impl Fn(&str) -> bool) -> Result<(Config, Vec<String>)> {
        let mut config = Config::default();
        for setting in SETTINGS {
            (setting.set)(&mut config, setting.default)?;
        }
        let mut flags = Vec::new();
        let mut rest = Vec::new();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let Some(flag) = arg.strip_prefix("--") else {
                rest.push(arg.clone());
                continue;
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, value.to_string()),
                None if SWITCHES.contains(&flag) => (flag, "yes".into()),
                None => (flag, args.next().with_context(|| format!("--{flag} needs a value"))?.clone()),
            };
            match name {
                "config" => config.read_file(Path::new(&value))?,
                name if own(name) => rest.push(format!("--{name}={value}")),
                _ => flags.push((name.to_string(), value)),
            }
        }
        let default = config.name.clone();
        for (name, value) in &flags {
            config.set(name, value).with_context(|| format!("--{name}"))?;
        }
        let named = config.name != default || flags.iter().any(|(name, _)| name == "name");
        if !named && let Ok(kept) = std::fs::read_to_string(config.data_dir.join(NAME_FILE)) {
            config.set("name", kept.trim()).with_context(|| format!("{NAME_FILE} in the data folder"))?;
        }
        Ok((config, rest))
    }

    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let setting = SETTINGS.iter().find(|s| s.name == name);
        let setting = setting.with_context(|| format!("no such setting: {name} (gantry help lists them)"))?;
        (setting.set)(self, value)
    }

    fn read_file(&mut self, path: &Path) -> Result<()> {
        let file = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        for (number, line) in file.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let place = || format!("{}, line {}", path.display(), number + 1);
            let (name, value) = line.split_once('=').with_context(place)?;
            self.set(name.trim(), value.trim().trim_matches('"')).with_context(place)?;
        }
        Ok(())
    }

    /// Keeps the instance's name in the data folder.
    pub fn keep_name(&self) -> Result<()> {
        let file = self.data_dir.join(NAME_FILE);
        std::fs::create_dir_all(&self.data_dir).with_context(|| self.data_dir.display().to_string())?;
        std::fs::write(&file, &self.name).with_context(|| file.display().to_string())
    }

    /// The settings that all nodes share, by name.
    pub fn shared(&self) -> serde_json::Value {
        let values = [&self.pod_cidr, &self.service_cidr, &self.cluster_domain]
            .map(|v| serde_json::Value::from(v.as_str()));
        SHARED.into_iter().zip(values).map(|(name, value)| (name.to_string(), value)).collect()
    }

    /// Takes the shared settings of a cluster.
    pub fn adopt(&mut self, shared: &serde_json::Value) -> Result<()> {
        for name in SHARED {
            let value =
                shared[name].as_str().with_context(|| format!("the cluster does not say its {name}"))?;
            self.set(name, value)?;
        }
        Ok(())
    }

    /// Where clients on this host reach the API.
    pub fn server(&self) -> String {
        let host = self.bind.filter(|ip| !ip.is_unspecified()).unwrap_or(Ipv4Addr::LOCALHOST);
        format!("https://{host}:{}", self.port)
    }

    /// State that does not outlive a reboot.
    pub fn run_dir(&self) -> PathBuf {
        Path::new("/run").join(&self.name)
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.data_dir.join("kubeconfig")
    }

    /// The socket `gantry image|status|down` talk to.
    pub fn socket(&self) -> PathBuf {
        self.run_dir().join("gantry.sock")
    }
}

/// The settings, a line each.
pub fn help() -> String {
    let line = |s: &Setting| {
        let default = if s.default.is_empty() { String::new() } else { format!(" [{}]", s.default) };
        format!("  --{:<16} {}{default}\n", s.name, s.help)
    };
    let config = "  --config           a file of `name = value` lines with these names\n";
    SETTINGS.iter().map(line).collect::<String>() + config
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<(Config, Vec<String>)> {
        Config::from_args(&args.iter().map(|a| a.to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn flags_win_over_the_file_which_wins_over_defaults() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "port = 7000 # comment\nnode-name = \"n1\"\n\n").unwrap();
        let path = file.path().to_str().unwrap();
        let (config, rest) = parse(&["image", "--port=7001", "--config", path, "load"]).unwrap();
        assert_eq!((config.port, config.node_name.as_str(), config.node_port), (7001, "n1", 10250));
        assert_eq!(rest, ["image", "load"]);
    }

    #[test]
    fn a_data_folder_knows_its_instance() {
        let folder = tempfile::tempdir().unwrap();
        let at = format!("--data-dir={}", folder.path().display());
        let name = |args: &[&str]| parse(args).unwrap().0.name;
        assert_eq!(name(&[&at]), "gantry");
        parse(&[&at, "--name=mine"]).unwrap().0.keep_name().unwrap();
        assert_eq!(
            (name(&[&at]), name(&[&at, "--name=other"]), name(&[])),
            ("mine".into(), "other".into(), "gantry".into())
        );
        assert_eq!(name(&[&at, "--name=gantry"]), "gantry");
    }

    #[test]
    fn a_joining_node_takes_the_clusters_settings() {
        let (cluster, _) = parse(&["--pod-cidr=10.1.0.0/16", "--service-cidr=10.2.0.0/16"]).unwrap();
        let (mut node, _) = parse(&["--max-pods=9"]).unwrap();
        node.adopt(&cluster.shared()).unwrap();
        assert_eq!(
            (node.pod_cidr.as_str(), node.service_cidr.as_str(), node.max_pods),
            ("10.1.0.0/16", "10.2.0.0/16", 9)
        );
        assert!(node.adopt(&serde_json::json!({})).is_err());
    }

    #[test]
    fn a_switch_takes_no_value() {
        let args = ["agent", "--insecure-trust-first", "--port=1"].map(String::from);
        let (config, rest) = Config::with_flags(&args, |flag| flag == "insecure-trust-first").unwrap();
        assert_eq!(
            (config.port, rest.as_slice()),
            (1, &["agent".to_string(), "--insecure-trust-first=yes".into()][..])
        );
    }

    #[test]
    fn bad_settings_say_what_and_where() {
        for (args, words) in [
            (&["--port", "70000"][..], "not a number in range"),
            (&["--name", "Too_Long_Name"], "1 to 8 characters"),
            (&["--nope", "1"], "no such setting: nope"),
            (&["--port"], "--port needs a value"),
            (&["--node-ip", "x"], "not an IPv4 address"),
        ] {
            let error = format!("{:#}", parse(args).unwrap_err());
            assert!(error.contains(words), "{error}");
        }
    }
}
