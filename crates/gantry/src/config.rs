//! Settings: one table (`config/settings.txt`) serves the command line, the config file (`name = value` lines) and
//! `--help`.
//!
//! Later sources win: defaults, then the file named by `--config`, then flags.

mod values;

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use values::{
    address, cpu_list, cpu_policy, file, instance_name, number, profile, scheduler_file, text, truth,
};

/// The settings, a row each: name, default ("" = found out at start), meaning.
fn rows() -> impl Iterator<Item = [&'static str; 3]> {
    stdx::rows(include_str!("config/settings.txt"))
}

/// Takes a setting's value from text.
type Setter = fn(&mut Config, &str) -> Result<()>;

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
    /// Processes and threads a pod has at most; 0: as many as the kernel allows. (A fork bomb otherwise takes the whole
    /// host's process numbers.)
    pub pod_pids_max: i64,
    /// Do containers that ask for whole CPUs get such alone, and which are never given away?
    pub cpus: agent::cpus::Settings,
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
    /// Which of Kubernetes' features are on.
    pub gates: k8s_schema::Gates,
    /// Are requests without credentials the anonymous user's?
    pub anonymous_auth: bool,
    /// Log filter, as in `info,apiserver=debug`.
    pub log: String,
    /// All settings as they were given, by name; secrets left out.
    pub given: BTreeMap<String, String>,
}

macro_rules! setting {
    ($name:literal, $($field:ident).+ = $parse:expr) => {
        ($name, |config, text| {
            let parse: fn(&str) -> Result<_> = $parse;
            config.$($field).+ = parse(text)?;
            Ok(())
        })
    };
}

/// Settings that all nodes of a cluster share: a node that joins takes them from the cluster.
const SHARED: [&str; 3] = ["pod-cidr", "service-cidr", "cluster-domain"];
/// In the data folder: the name of the instance that it is of, for commands that are told the folder only.
const NAME_FILE: &str = "instance-name";
/// Flags of commands that need no value.
const SWITCHES: [&str; 4] = ["drain", "follow", "insecure-trust-first", "timestamps"];

/// Where each goes, and how it is read.
const SETTERS: &[(&str, Setter)] = &[
    setting!("name", name = instance_name),
    setting!("data-dir", data_dir = |v| Ok(std::path::absolute(v)?)),
    setting!(
        "kubelet-dir",
        kubelet_dir = |v| if v.is_empty() { Ok(None) } else { Ok(Some(std::path::absolute(v)?)) }
    ),
    setting!("store", store = text),
    setting!("encryption-provider-config", encryption_config = text),
    setting!("bind", bind = address),
    setting!("port", port = number),
    setting!("node-port", node_port = number),
    setting!("node-name", node_name = text),
    setting!("node-ip", node_ip = address),
    setting!("pod-cidr", pod_cidr = text),
    setting!("service-cidr", service_cidr = text),
    setting!("cluster-domain", cluster_domain = text),
    setting!("lb-pool", lb_pool = text),
    setting!("max-pods", max_pods = number),
    setting!("pod-manifest-path", pod_manifests = text),
    setting!("pod-pids-max", pod_pids_max = number),
    setting!("cpu-manager-policy", cpus.exclusive = cpu_policy),
    setting!("reserved-cpus", cpus.reserved = cpu_list),
    setting!("runtimes", runtimes = text),
    setting!("registry-port", registry_port = number),
    setting!("registry-mirrors", registry_mirrors = text),
    setting!("insecure-registries", insecure_registries = text),
    setting!("registry-auth", registry_auth = text),
    setting!("registry-users", registry_users = text),
    setting!("aws-port", aws_port = number),
    setting!("aws-account", aws_account = text),
    setting!("aws-region", aws_region = text),
    setting!("aws-keys", aws_keys = text),
    setting!("elb-address", elb_address = address),
    setting!("elb-pool", elb_pool = text),
    setting!("task-retention", task_retention = number),
    setting!("service-settle", service_settle = number),
    setting!("efs-root", efs_root = text),
    setting!("eviction-hard", eviction_hard = text),
    setting!("eviction-soft", eviction_soft = text),
    setting!("eviction-soft-grace", eviction_soft_grace = text),
    setting!("eviction-reclaim", eviction_reclaim = text),
    setting!("eviction-transition", eviction_transition = number),
    setting!("eviction-pod-grace", eviction_pod_grace = number),
    setting!("shutdown-grace-period", shutdown_grace.all = text),
    setting!("shutdown-grace-period-critical-pods", shutdown_grace.critical = text),
    setting!("shutdown-grace-period-by-pod-priority", shutdown_grace.by_priority = text),
    setting!("audit-policy", audit_policy = text),
    setting!("audit-log", audit_log = text),
    setting!("audit-log-size", audit_log_size = number),
    setting!("audit-log-backups", audit_log_backups = number),
    setting!("audit-log-age", audit_log_age = number),
    setting!("audit-webhook", audit_webhook = text),
    setting!("scheduler-profile", scheduler_profile = profile),
    setting!("scheduler-config", scheduler_file = scheduler_file),
    setting!(
        "service-account-signing-algorithm",
        token_algorithm = |name| auth::tokens::Algorithm::named(name)
            .with_context(|| format!("{name:?} is neither RS256 nor ES256"))
    ),
    setting!(
        "service-account-issuer",
        token_issuer = |url| match url {
            "" => text(url),
            url if url.starts_with("https://") => text(url),
            _ => bail!("{url:?} is no https URL"),
        }
    ),
    setting!("authentication-config", authentication_config = text),
    setting!("oidc-issuer-url", oidc.issuer_url = text),
    setting!("oidc-client-id", oidc.client_id = text),
    setting!("oidc-username-claim", oidc.username_claim = text),
    setting!("oidc-username-prefix", oidc.username_prefix = text),
    setting!("oidc-groups-claim", oidc.groups_claim = text),
    setting!("oidc-groups-prefix", oidc.groups_prefix = text),
    setting!("oidc-required-claim", oidc.required_claims = text),
    setting!("oidc-ca-file", oidc.ca_pem = file),
    setting!("authentication-webhook", authentication_webhook = text),
    setting!("authorization-config", authorization_config = text),
    setting!("authorization-webhook", authorization_webhook = text),
    setting!("enable-admission-plugins", plugins_on = text),
    setting!("disable-admission-plugins", plugins_off = text),
    setting!("legacy-pod-security-policy", pod_security_policy = truth),
    setting!("feature-gates", gates = |v| k8s_schema::Gates::parse(v).map_err(anyhow::Error::msg)),
    setting!("anonymous-auth", anonymous_auth = truth),
    setting!("log", log = text),
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
        for [name, default, _] in rows() {
            config.set(name, default)?;
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
        let setter = SETTERS.iter().find(|s| s.0 == name);
        let (_, set) = setter.with_context(|| format!("no such setting: {name} (gantry help lists them)"))?;
        let shown = if name == "aws-keys" { "***" } else { value };
        self.given.insert(name.into(), shown.into());
        set(self, value)
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
    let line = |[name, default, help]: [&str; 3]| {
        let default = if default.is_empty() { String::new() } else { format!(" [{default}]") };
        format!("  --{name:<16} {help}{default}\n")
    };
    let config = "  --config           a file of `name = value` lines with these names\n";
    rows().map(line).collect::<String>() + config
}

#[cfg(test)]
mod tests;
