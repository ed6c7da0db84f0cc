//! `cargo xtask specs aws`: downloads the pinned botocore wheel and writes one doc-free table a service.
//!
//! Reads: one wheel from PyPI through `pip`, refused unless its sha256 is the pinned one.
//! Writes: `specs/aws/<service>.txt` (format: see [`FORMAT`], which heads each file). No documentation is ever written.
//! Any trait that is not known here stops the task, so that a newer model is looked at before it is taken.

use anyhow::{Context, Result, bail, ensure};
use flate2::read::GzDecoder;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Read;
use std::path::Path;
use std::process::Command;

const PACKAGE: &str = "botocore";
const VERSION: &str = "1.44.5";
const SHA256: &str = "8f16a56d1dff125dd65322ae021efa7ba5195a6db5102b96862566055b748921";
const FORMAT: &str = "\
# service <name> api= protocols= [json=] [target=] signing= endpoint= [ns=] [compatible] id=
# op <name> [http=<METHOD>,<path>] [status=] [in=] [out=] [wrap=] [host=] [unsigned] [later] [err=<shape>,…]
# later <operations of which only the name is kept> …
# structure <name> [error=<code>,<status>,<sender|->] [exception] [fault] [union] [document] [eventstream] [event] [payload=]
#  <member> <shape> [!] [at=uri|header|headers|querystring|statusCode] [name=] [query=] [token] [flat] [payload] [event]
# list <name> <shape> [item=] [flat] [min=] [max=]     map <name> <key> <value> [keyname=] [valuename=] [min=] [max=]
# string|integer|long|float|double|boolean|timestamp|blob <name> [min=] [max=] [format=] [enum=a,b] [pattern=<rest of line>]
# In values %20 is a blank, %2C a comma and %25 a percent sign. http: POST,/ unless said. !: required. token: idempotency.
";

/// Which operations get their shapes.
enum Take {
    All,
    Names,
    Only(&'static [&'static str]),
}

/// Services by botocore's folder name.
const SERVICES: &[(&str, Take)] = &[
    ("application-autoscaling", Take::All),
    ("appmesh", Take::Names),
    ("autoscaling", Take::All),
    ("cloudwatch", Take::All),
    ("ec2", Take::Only(EC2)),
    ("ecr", Take::All),
    ("ecs", Take::All),
    ("eks", Take::All),
    ("eks-auth", Take::All),
    ("elbv2", Take::All),
    ("events", Take::All),
    ("iam", Take::All),
    ("logs", Take::All),
    ("secretsmanager", Take::All),
    ("servicediscovery", Take::All),
    ("ssm", Take::All),
    ("sts", Take::All),
];

/// What flows around containers need of EC2: the network, its guards, instances as nodes, tags.
const EC2: &[&str] = &[
    "AllocateAddress",
    "AssignPrivateIpAddresses",
    "AssociateAddress",
    "AssociateDhcpOptions",
    "AssociateIamInstanceProfile",
    "AssociateRouteTable",
    "AssociateSubnetCidrBlock",
    "AssociateVpcCidrBlock",
    "AttachInternetGateway",
    "AttachNetworkInterface",
    "AttachVolume",
    "AuthorizeSecurityGroupEgress",
    "AuthorizeSecurityGroupIngress",
    "CreateDefaultSubnet",
    "CreateDefaultVpc",
    "CreateDhcpOptions",
    "CreateEgressOnlyInternetGateway",
    "CreateFlowLogs",
    "CreateInternetGateway",
    "CreateKeyPair",
    "CreateLaunchTemplate",
    "CreateLaunchTemplateVersion",
    "CreateNatGateway",
    "CreateNetworkAcl",
    "CreateNetworkAclEntry",
    "CreateNetworkInterface",
    "CreatePlacementGroup",
    "CreateRoute",
    "CreateRouteTable",
    "CreateSecurityGroup",
    "CreateSnapshot",
    "CreateSubnet",
    "CreateTags",
    "CreateVolume",
    "CreateVpc",
    "CreateVpcEndpoint",
    "CreateVpcPeeringConnection",
    "AcceptVpcPeeringConnection",
    "DeleteDhcpOptions",
    "DeleteEgressOnlyInternetGateway",
    "DeleteFlowLogs",
    "DeleteInternetGateway",
    "DeleteKeyPair",
    "DeleteLaunchTemplate",
    "DeleteLaunchTemplateVersions",
    "DeleteNatGateway",
    "DeleteNetworkAcl",
    "DeleteNetworkAclEntry",
    "DeleteNetworkInterface",
    "DeletePlacementGroup",
    "DeleteRoute",
    "DeleteRouteTable",
    "DeleteSecurityGroup",
    "DeleteSnapshot",
    "DeleteSubnet",
    "DeleteTags",
    "DeleteVolume",
    "DeleteVpc",
    "DeleteVpcEndpoints",
    "DeleteVpcPeeringConnection",
    "DescribeAccountAttributes",
    "DescribeAddresses",
    "DescribeAddressesAttribute",
    "DescribeAvailabilityZones",
    "DescribeDhcpOptions",
    "DescribeEgressOnlyInternetGateways",
    "DescribeFlowLogs",
    "DescribeIamInstanceProfileAssociations",
    "DescribeImages",
    "DescribeInstanceAttribute",
    "DescribeInstanceCreditSpecifications",
    "DescribeInstanceStatus",
    "DescribeInstanceTypeOfferings",
    "DescribeInstanceTypes",
    "DescribeInstances",
    "DescribeInternetGateways",
    "DescribeKeyPairs",
    "DescribeLaunchTemplateVersions",
    "DescribeLaunchTemplates",
    "DescribeManagedPrefixLists",
    "DescribeNatGateways",
    "DescribeNetworkAcls",
    "DescribeNetworkInterfaceAttribute",
    "DescribeNetworkInterfaces",
    "DescribePlacementGroups",
    "DescribePrefixLists",
    "DescribeRegions",
    "DescribeRouteTables",
    "DescribeSecurityGroupReferences",
    "DescribeSecurityGroupRules",
    "DescribeSecurityGroups",
    "DescribeSnapshots",
    "DescribeSubnets",
    "DescribeTags",
    "DescribeVolumes",
    "DescribeVpcAttribute",
    "DescribeVpcClassicLink",
    "DescribeVpcClassicLinkDnsSupport",
    "DescribeVpcEndpointServices",
    "DescribeVpcEndpoints",
    "DescribeVpcPeeringConnections",
    "DescribeVpcs",
    "DetachInternetGateway",
    "DetachNetworkInterface",
    "DetachVolume",
    "DisassociateAddress",
    "DisassociateIamInstanceProfile",
    "DisassociateRouteTable",
    "DisassociateSubnetCidrBlock",
    "DisassociateVpcCidrBlock",
    "GetConsoleOutput",
    "GetSecurityGroupsForVpc",
    "ImportKeyPair",
    "ModifyInstanceAttribute",
    "ModifyLaunchTemplate",
    "ModifyNetworkInterfaceAttribute",
    "ModifySecurityGroupRules",
    "ModifySubnetAttribute",
    "ModifyVpcAttribute",
    "ModifyVpcEndpoint",
    "RebootInstances",
    "ReleaseAddress",
    "ReplaceNetworkAclAssociation",
    "ReplaceNetworkAclEntry",
    "ReplaceRoute",
    "ReplaceRouteTableAssociation",
    "RevokeSecurityGroupEgress",
    "RevokeSecurityGroupIngress",
    "RunInstances",
    "StartInstances",
    "StopInstances",
    "TerminateInstances",
    "UnassignPrivateIpAddresses",
    "UpdateSecurityGroupRuleDescriptionsEgress",
    "UpdateSecurityGroupRuleDescriptionsIngress",
];

/// Traits that say nothing about the wire or about what is valid.
const SILENT: &[&str] = &[
    "documentation",
    "deprecated",
    "deprecatedMessage",
    "deprecatedSince",
    "sensitive",
    "box",
    "synthetic",
    "xmlOrder",
    "readonly",
    "idempotent",
    "contextParam",
    "requestcompression",
    "auth",
];

/// Downloads the wheel and writes all tables.
pub fn run(root: &Path) -> Result<()> {
    let dir = std::env::temp_dir().join(format!("gantry-botocore-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let done = unpack(&dir).and_then(|()| write_tables(&dir, &root.join("specs/aws")));
    std::fs::remove_dir_all(&dir)?;
    done
}

fn unpack(dir: &Path) -> Result<()> {
    let ok = Command::new("pip")
        .args(["download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest"])
        .arg(dir)
        .arg(format!("{PACKAGE}=={VERSION}"))
        .status()
        .context("run pip")?
        .success();
    ensure!(ok, "pip download failed");
    let wheel = dir.join(format!("{PACKAGE}-{VERSION}-py3-none-any.whl"));
    let sum = super::hex_sha256(&std::fs::read(&wheel).with_context(|| wheel.display().to_string())?);
    ensure!(sum == SHA256, "{PACKAGE} {VERSION}: sha256 is {sum}, pinned is {SHA256}");
    let ok = Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(dir).status()?.success();
    ensure!(ok, "the wheel does not unpack");
    Ok(())
}

fn write_tables(dir: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    let (mut operations, mut bytes) = (0, 0);
    for (name, take) in SERVICES {
        let model = model(&dir.join("botocore/data").join(name)).with_context(|| (*name).to_string())?;
        let table = table(name, &model, take).with_context(|| (*name).to_string())?;
        operations += object(&model["operations"]).count();
        bytes += table.len();
        std::fs::write(to.join(format!("{name}.txt")), table)?;
    }
    println!("{}: {} services, {operations} operations, {bytes} bytes", to.display(), SERVICES.len());
    Ok(())
}

/// The model of the newest API version.
fn model(folder: &Path) -> Result<Value> {
    let versions = std::fs::read_dir(folder)?.filter_map(|e| Some(e.ok()?.path()));
    let newest = versions.filter(|p| p.is_dir()).max().context("no version")?;
    let mut text = String::new();
    GzDecoder::new(std::fs::File::open(newest.join("service-2.json.gz"))?).read_to_string(&mut text)?;
    Ok(serde_json::from_str(&text)?)
}

fn table(name: &str, model: &Value, take: &Take) -> Result<String> {
    let mut out = format!(
        "# AWS {name}, without documentation. Made by `cargo xtask specs aws`; do not edit.\n\
         # source: PyPI {PACKAGE} {VERSION} (wheel), sha256 {SHA256}\n\
         # licence: Apache-2.0, Copyright Amazon.com, Inc. or its affiliates\n{FORMAT}"
    );
    head(&mut out, name, &model["metadata"])?;
    let rest = text(&model["metadata"], "protocol") == "rest-json";
    let (mut later, mut wanted) = (Vec::new(), BTreeSet::new());
    if let Take::Only(names) = take {
        let missing = names.iter().find(|n| model["operations"].get(**n).is_none());
        ensure!(missing.is_none(), "no operation {missing:?}");
    }
    for (name, operation) in object(&model["operations"]) {
        let taken = match take {
            Take::All => true,
            Take::Names => false,
            Take::Only(names) => names.contains(&name.as_str()),
        };
        match (taken, rest) {
            (false, false) => later.push(name.as_str()),
            _ => operation_line(&mut out, name, operation, taken, &mut wanted)?,
        }
    }
    if !later.is_empty() {
        writeln!(out, "later {}", later.join(" "))?;
    }
    let mut done = BTreeSet::new();
    while let Some(name) = wanted.pop_first() {
        let shape = &model["shapes"][&name];
        for inner in references(shape) {
            if !done.contains(&inner) && inner != name {
                wanted.insert(inner);
            }
        }
        done.insert(name);
    }
    for name in done {
        shape_lines(&mut out, &name, &model["shapes"][&name]).with_context(|| name.clone())?;
    }
    Ok(out)
}

fn head(out: &mut String, name: &str, metadata: &Value) -> Result<()> {
    let mut protocols: Vec<&str> = list(&metadata["protocols"]).filter_map(Value::as_str).collect();
    if protocols.is_empty() {
        protocols.push(text(metadata, "protocol"));
    }
    write!(out, "service {name} api={} protocols={}", text(metadata, "apiVersion"), protocols.join(","))?;
    for (key, label) in [("jsonVersion", "json"), ("targetPrefix", "target")] {
        if let Some(value) = metadata[key].as_str() {
            write!(out, " {label}={value}")?;
        }
    }
    let endpoint = text(metadata, "endpointPrefix");
    write!(out, " signing={} endpoint={endpoint}", metadata["signingName"].as_str().unwrap_or(endpoint))?;
    if let Some(ns) = metadata["xmlNamespace"].as_str() {
        write!(out, " ns={ns}")?;
    }
    if metadata.get("awsQueryCompatible").is_some() {
        out.push_str(" compatible");
    }
    writeln!(out, " id={}", escape(text(metadata, "serviceId")))?;
    Ok(())
}

fn known(what: &Value, loud: &[&str]) -> Result<()> {
    let stray = object(what).find(|(k, _)| !loud.contains(&k.as_str()) && !SILENT.contains(&k.as_str()));
    match stray {
        Some((key, value)) => bail!("trait {key} = {value} is not known"),
        None => Ok(()),
    }
}

fn operation_line(
    out: &mut String,
    name: &str,
    operation: &Value,
    taken: bool,
    wanted: &mut BTreeSet<String>,
) -> Result<()> {
    known(operation, &["name", "http", "input", "output", "errors", "endpoint", "authtype"])?;
    known(&operation["http"], &["method", "requestUri", "responseCode"])?;
    write!(out, "op {name}")?;
    let http = (text(&operation["http"], "method"), text(&operation["http"], "requestUri"));
    if http != ("POST", "/") {
        write!(out, " http={},{}", http.0, http.1)?;
    }
    if let Some(code) = operation["http"]["responseCode"].as_u64().filter(|c| *c != 200) {
        write!(out, " status={code}")?;
    }
    if !taken {
        out.push_str(" later\n");
        return Ok(());
    }
    for (key, label) in [("input", "in"), ("output", "out")] {
        known(&operation[key], &["shape", "resultWrapper"])?;
        if let Some(shape) = operation[key]["shape"].as_str() {
            write!(out, " {label}={shape}")?;
            wanted.insert(shape.into());
        }
    }
    if let Some(wrapper) = operation["output"]["resultWrapper"].as_str() {
        write!(out, " wrap={wrapper}")?;
    }
    if let Some(host) = operation["endpoint"]["hostPrefix"].as_str() {
        write!(out, " host={host}")?;
    }
    match operation["authtype"].as_str() {
        None => {}
        Some("none") => out.push_str(" unsigned"),
        Some(other) => bail!("authtype {other}"),
    }
    let errors: Vec<&str> = list(&operation["errors"]).filter_map(|e| e["shape"].as_str()).collect();
    if !errors.is_empty() {
        write!(out, " err={}", errors.join(","))?;
    }
    wanted.extend(errors.into_iter().map(String::from));
    out.push('\n');
    Ok(())
}

/// Shapes that a shape refers to.
fn references(shape: &Value) -> Vec<String> {
    let members = object(&shape["members"]).map(|(_, m)| m);
    let parts = ["member", "key", "value"].into_iter().filter_map(|k| shape.get(k));
    members.chain(parts).map(|m| text(m, "shape").to_string()).collect()
}

fn shape_lines(out: &mut String, name: &str, shape: &Value) -> Result<()> {
    let kind = text(shape, "type");
    // `locationName` of a list itself names nothing on the wire where its members have one.
    known(
        shape,
        &[
            "type",
            "members",
            "required",
            "exception",
            "error",
            "fault",
            "union",
            "document",
            "eventstream",
            "event",
            "payload",
            "member",
            "key",
            "value",
            "min",
            "max",
            "enum",
            "pattern",
            "flattened",
            "locationName",
            "timestampFormat",
        ],
    )?;
    write!(out, "{kind} {name}")?;
    match kind {
        "structure" => return structure_lines(out, shape),
        "list" => part(out, "item", &shape["member"])?,
        "map" => {
            part(out, "keyname", &shape["key"])?;
            part(out, "valuename", &shape["value"])?;
            let names = out.rfind('\n').unwrap_or_default();
            reorder_map(out, names);
        }
        "string" | "integer" | "long" | "float" | "double" | "boolean" | "timestamp" | "blob" => {}
        other => bail!("type {other:?}"),
    }
    flag(out, shape, "flattened", "flat");
    for key in ["min", "max"] {
        if shape.get(key).is_some_and(Value::is_number) {
            write!(out, " {key}={}", shape[key])?;
        }
    }
    if let Some(format) = shape["timestampFormat"].as_str() {
        write!(out, " format={format}")?;
    }
    let values: Vec<String> = list(&shape["enum"]).filter_map(Value::as_str).map(escape).collect();
    if !values.is_empty() {
        write!(out, " enum={}", values.join(","))?;
    }
    if let Some(pattern) = shape["pattern"].as_str() {
        ensure!(!pattern.contains('\n'), "a pattern of several lines");
        write!(out, " pattern={pattern}")?;
    }
    out.push('\n');
    Ok(())
}

/// `<shape> [label=<wire name>]`.
fn part(out: &mut String, label: &str, part: &Value) -> Result<()> {
    known(part, &["shape", "locationName"])?;
    write!(out, " {}", text(part, "shape"))?;
    if let Some(name) = part["locationName"].as_str() {
        write!(out, " {label}={name}")?;
    }
    Ok(())
}

/// Puts the two shapes of a map before their wire names.
fn reorder_map(out: &mut String, from: usize) {
    let line = out.split_off(from);
    let (names, words): (Vec<&str>, Vec<&str>) = line.split(' ').partition(|w| w.contains("name="));
    out.push_str(&words.into_iter().chain(names).collect::<Vec<_>>().join(" "));
}

fn structure_lines(out: &mut String, shape: &Value) -> Result<()> {
    if let Some(error) = shape.get("error") {
        known(error, &["code", "httpStatusCode", "senderFault"])?;
        let status = error["httpStatusCode"].as_u64().unwrap_or(400);
        let sender = if error["senderFault"] == true { "sender" } else { "-" };
        write!(out, " error={},{status},{sender}", text(error, "code"))?;
    }
    for key in ["exception", "fault", "union", "document", "eventstream", "event"] {
        flag(out, shape, key, key);
    }
    if let Some(payload) = shape["payload"].as_str() {
        write!(out, " payload={payload}")?;
    }
    out.push('\n');
    let required: Vec<&str> = list(&shape["required"]).filter_map(Value::as_str).collect();
    for (name, member) in object(&shape["members"]) {
        known(
            member,
            &[
                "shape",
                "location",
                "locationName",
                "queryName",
                "idempotencyToken",
                "flattened",
                "eventpayload",
            ],
        )?;
        write!(out, " {name} {}", text(member, "shape"))?;
        if required.contains(&name.as_str()) {
            out.push_str(" !");
        }
        for (key, label) in [("location", "at"), ("locationName", "name"), ("queryName", "query")] {
            // Most wire names are the member's own.
            if let Some(value) = member[key].as_str().filter(|v| *v != name) {
                write!(out, " {label}={value}")?;
            }
        }
        flag(out, member, "idempotencyToken", "token");
        flag(out, member, "flattened", "flat");
        flag(out, member, "eventpayload", "payload");
        out.push('\n');
    }
    Ok(())
}

fn flag(out: &mut String, of: &Value, key: &str, label: &str) {
    if of[key] == true {
        out.push(' ');
        out.push_str(label);
    }
}

fn escape(text: &str) -> String {
    text.replace('%', "%25").replace(' ', "%20").replace(',', "%2C")
}

fn object(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn model() -> Value {
        json!({
            "metadata": {"apiVersion": "1", "protocols": ["json"], "protocol": "json", "endpointPrefix": "x",
                "targetPrefix": "X_1", "jsonVersion": "1.1", "serviceId": "X Y"},
            "operations": {
                "Do": {"name": "Do", "http": {"method": "POST", "requestUri": "/"}, "documentation": "never",
                    "input": {"shape": "In"}, "errors": [{"shape": "Bad"}]},
                "Later": {"name": "Later", "http": {"method": "POST", "requestUri": "/"}, "input": {"shape": "Unused"}},
            },
            "shapes": {
                "In": {"type": "structure", "required": ["a"], "members": {
                    "a": {"shape": "S", "documentation": "never", "locationName": "A"}, "m": {"shape": "M"}}},
                "M": {"type": "map", "key": {"shape": "S", "locationName": "K"}, "value": {"shape": "In"}},
                "S": {"type": "string", "min": 1, "enum": ["a b", "c,d"], "pattern": "[a b]+"},
                "Bad": {"type": "structure", "members": {}, "exception": true,
                    "error": {"code": "Bad", "httpStatusCode": 404, "senderFault": true}},
                "Unused": {"type": "structure", "members": {}},
            },
        })
    }

    #[test]
    fn a_table_holds_what_is_reachable_and_no_prose() {
        let table = table("x", &model(), &Take::Only(&["Do"])).unwrap();
        let body: Vec<&str> = table.lines().filter(|l| !l.starts_with('#')).collect();
        assert_eq!(
            body,
            [
                "service x api=1 protocols=json json=1.1 target=X_1 signing=x endpoint=x id=X%20Y",
                "op Do in=In err=Bad",
                "later Later",
                "structure Bad error=Bad,404,sender exception",
                "structure In",
                " a S ! name=A",
                " m M",
                "map M S In keyname=K",
                "string S min=1 enum=a%20b,c%2Cd pattern=[a b]+",
            ]
        );
    }

    #[test]
    fn an_unknown_trait_stops_it() {
        let mut model = model();
        model["shapes"]["S"]["novel"] = json!(1);
        assert!(table("x", &model, &Take::All).is_err());
    }
}
