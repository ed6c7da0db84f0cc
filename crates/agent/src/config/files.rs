//! The files that a pod finds below `/etc`: hosts, hostname, resolv.conf. And its names.

use crate::facts::NodeFacts;
use crate::pod::PodView;
use std::net::IpAddr;

/// Longest label of a name.
const LABEL_MAX: usize = 63;
/// glibc and Kubernetes take no more search domains.
const SEARCHES_MAX: usize = 32;
/// Kubernetes takes no more name servers.
const NAMESERVERS_MAX: usize = 3;

/// The host name inside the pod.
pub fn hostname(pod: &PodView, facts: &NodeFacts) -> String {
    let spec = pod.spec();
    if let Some(name) = &spec.hostname_override {
        return name.clone();
    }
    if pod.host_network() {
        return facts.hostname.clone();
    }
    match fqdn(pod, facts) {
        Some(fqdn) if spec.set_hostname_as_fqdn == Some(true) => fqdn,
        _ => short(pod),
    }
}

fn short(pod: &PodView) -> String {
    let name = pod.spec().hostname.as_deref().filter(|h| !h.is_empty()).unwrap_or(pod.name());
    let end = name.len().min(LABEL_MAX);
    name[..end].trim_end_matches(['-', '.']).to_string()
}

/// The full name, where the pod has a subdomain.
pub fn fqdn(pod: &PodView, facts: &NodeFacts) -> Option<String> {
    let subdomain = pod.spec().subdomain.as_deref().filter(|s| !s.is_empty())?;
    Some(format!("{}.{subdomain}.{}.svc.{}", short(pod), pod.namespace(), facts.cluster_domain))
}

/// `/etc/hosts`.
pub fn hosts(pod: &PodView, facts: &NodeFacts, ips: &[IpAddr]) -> String {
    let mut text = if pod.host_network() {
        format!("# Kubernetes-managed hosts file (host network).\n{}", facts.hosts)
    } else {
        let mut text = String::from(
            "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
        );
        let forced = pod.spec().hostname_override.as_deref();
        for ip in ips {
            match fqdn(pod, facts).filter(|_| forced.is_none()) {
                Some(fqdn) => text.push_str(&format!("{ip}\t{fqdn}\t{}\n", short(pod))),
                None => text.push_str(&format!("{ip}\t{}\n", forced.unwrap_or(&short(pod)))),
            }
        }
        text
    };
    let aliases = pod.spec().host_aliases.as_deref().unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
            text.push_str(&format!("{}\t{names}\n", alias.ip));
        }
    }
    text
}

#[derive(Default)]
struct Resolver {
    nameservers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

impl Resolver {
    fn parse(text: &str) -> Resolver {
        let mut resolver = Resolver::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => resolver.nameservers.extend(words.next().map(str::to_string)),
                Some("search") => resolver.searches = words.map(str::to_string).collect(),
                Some("options") => resolver.options.extend(words.map(str::to_string)),
                _ => {}
            }
        }
        resolver
    }

    fn print(&self) -> String {
        let mut text = String::new();
        if !self.searches.is_empty() {
            text.push_str(&format!("search {}\n", self.searches.join(" ")));
        }
        for server in &self.nameservers {
            text.push_str(&format!("nameserver {server}\n"));
        }
        if !self.options.is_empty() {
            text.push_str(&format!("options {}\n", self.options.join(" ")));
        }
        text
    }
}

/// `/etc/resolv.conf`, by `dnsPolicy` and `dnsConfig`.
pub fn resolv_conf(pod: &PodView, facts: &NodeFacts) -> String {
    let host = Resolver::parse(&facts.resolv_conf);
    let policy = pod.spec().dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster = match policy {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !pod.host_network(),
        _ => false,
    };
    let mut resolver = match (policy, cluster, facts.cluster_dns) {
        ("None", _, _) => Resolver::default(),
        (_, true, Some(dns)) => {
            let domain = &facts.cluster_domain;
            let mut searches =
                vec![format!("{}.svc.{domain}", pod.namespace()), format!("svc.{domain}"), domain.clone()];
            searches.extend(host.searches);
            Resolver { nameservers: vec![dns.to_string()], searches, options: vec!["ndots:5".into()] }
        }
        _ => host,
    };
    if let Some(config) = &pod.spec().dns_config {
        resolver.nameservers.extend(config.nameservers.iter().flatten().cloned());
        resolver.searches.extend(config.searches.iter().flatten().cloned());
        for option in config.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            resolver.options.retain(|o| o.split(':').next() != Some(name));
            resolver.options.push(match &option.value {
                Some(value) => format!("{name}:{value}"),
                None => name.clone(),
            });
        }
    }
    dedup(&mut resolver.nameservers, NAMESERVERS_MAX);
    dedup(&mut resolver.searches, SEARCHES_MAX);
    resolver.print()
}

fn dedup(list: &mut Vec<String>, max: usize) {
    let mut seen = std::collections::BTreeSet::new();
    list.retain(|entry| seen.insert(entry.clone()));
    list.truncate(max);
}
