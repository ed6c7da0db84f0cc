//! A second node: it joins by a token, runs pods, reaches and serves the first one's, and lives through the death of
//! agents and servers.

use crate::{busy, has, logged, refusal};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};
use testkit::cluster::{Cluster, run};

const GANTRY: &str = env!("CARGO_BIN_EXE_gantry");
static COUNT: AtomicU32 = AtomicU32::new(0);
pub(crate) const NODE_2_IP: &str = "10.98.0.2";

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      affinity:
        podAntiAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
          - {topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: web}}}
      tolerations: [{operator: Exists, effect: NoExecute}]
      containers:
      - name: c
        image: busybox
        imagePullPolicy: IfNotPresent
        command: [sh, -c, "hostname > /www/index.html; echo up; exec httpd -f -p 8080 -h /www"]
        readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080, nodePort: 30080}]}
"#;

/// A machine on a wire to the cluster's, with an agent or without.
pub(crate) struct Machine {
    name: String,
    folder: tempfile::TempDir,
    holder: Child,
    process: Option<Child>,
}

impl Machine {
    pub(crate) fn new(cluster: &Cluster) -> Result<Machine> {
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "ip link set lo up && echo made && exec sleep 100000"])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(holder.stdout.take().context("stdout is piped")?).read_line(&mut line)?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("h{:x}{count:x}", std::process::id() & 0xf_ffff);
        let machine = Machine { name, folder: tempfile::tempdir()?, holder, process: None };
        cluster.sh(&format!("ip link add wire type veth peer name eth0 netns {}", machine.holder.id()))?;
        cluster.sh("ip addr add 10.98.0.1/24 dev wire && ip link set wire up")?;
        machine.sh(&format!(
            "ip addr add {NODE_2_IP}/24 dev eth0 && ip link set eth0 up && ip route add default via 10.98.0.1"
        ))?;
        Ok(machine)
    }

    fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/proc/{}/ns/net", self.holder.id()))
            .args(["--", "timeout", "300", program]);
        command
    }

    pub(crate) fn sh(&self, script: &str) -> Result<String> {
        run(self.inside("sh").args(["-c", script]))
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn gantry(&self, args: &[&str]) -> Result<String> {
        run(self.inside(GANTRY).args(args).args(["--name", &self.name, "--data-dir"]).arg(self.folder.path()))
    }

    /// Loads the cluster's image. (A node may be Ready before its last socket is there.)
    pub(crate) fn load_busybox(&self, cluster: &Cluster) -> Result<()> {
        let archive = cluster.folder().join("busybox.tar").display().to_string();
        cluster.eventually("the second node loads", || self.gantry(&["image", "load", &archive])).map(drop)
    }

    /// Starts the agent; the words say which cluster.
    pub(crate) fn start(&mut self, words: &[&str]) -> Result<()> {
        let log = File::create(self.folder.path().join("log"))?;
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.holder.id())).arg(GANTRY).arg("agent").args(words);
        command.args(["--name", &self.name, "--node-name", "node-2", "--node-ip", NODE_2_IP, "--data-dir"]);
        command.arg(self.folder.path()).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.process = Some(command.spawn()?);
        Ok(())
    }

    /// Starts the agent and waits for its node; the words are those of [`joining_words`].
    pub(crate) fn join<S: AsRef<str>>(&mut self, cluster: &Cluster, words: &[S]) -> Result<()> {
        self.start(&words.iter().map(AsRef::as_ref).collect::<Vec<_>>())?;
        cluster.eventually("node-2 is Ready", || {
            let wait = ["wait", "node", "node-2", "--for=condition=Ready", "--timeout=5s"];
            cluster.kubectl(&wait).map(drop).context(self.log())
        })
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn signal(&mut self, signal: &str) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            run(Command::new("kill").args([signal, &process.id().to_string()]))?;
            process.wait()?;
        }
        Ok(())
    }

    /// `gantry down`; what is left of the node.
    fn down(&mut self) -> Result<Vec<String>> {
        self.gantry(&["down"])?;
        if let Some(mut process) = self.process.take() {
            process.wait()?;
        }
        let mut left: Vec<String> =
            self.sh("ip -o link; nft list tables; ip route")?.lines().map(String::from).collect();
        left.retain(|line| line.contains(&self.name) || line.contains("10.244."));
        left.extend(Path::new("/run").join(&self.name).exists().then(|| "run folder".into()));
        for hierarchy in fs::read_dir("/sys/fs/cgroup")?.flatten() {
            left.extend(
                hierarchy.path().join(&self.name).exists().then(|| format!("{:?}", hierarchy.path())),
            );
        }
        Ok(left)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.gantry(&["down"]);
        let _ = self.signal("-KILL");
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// The words of the joining command, without `gantry agent`.
pub(crate) fn joining_words(cluster: &Cluster) -> Result<Vec<String>> {
    let said = cluster.gantry(&["token", "create", "--ttl", "10m"])?;
    has(&said, &["gantry agent --server https://10.99.0.1:6443 --token ", "--ca-hash sha256:"])?;
    Ok(said.split_whitespace().skip(2).map(String::from).collect())
}

/// Runs a scenario with a second machine; what fails shows what both said.
pub(crate) fn with_machine(
    mut cluster: Cluster,
    scenario: impl FnOnce(&mut Cluster, &mut Machine) -> Result<()>,
) {
    let mut machine = Machine::new(&cluster).expect("a second machine");
    let outcome = scenario(&mut cluster, &mut machine);
    outcome
        .unwrap_or_else(|e| panic!("{e:#}\n-- agent:\n{}\n-- server:\n{}", machine.log(), cluster.output()));
}

#[test]
fn a_second_node() {
    with_machine(busy(), scenario);
}

fn scenario(cluster: &mut Cluster, machine: &mut Machine) -> Result<()> {
    let words = joining_words(cluster)?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    strangers_are_refused(machine, &words)?;
    machine.join(cluster, &words)?;
    cluster.eventually("who joins can tell the real cluster-info", || {
        let info =
            cluster.kubectl(&["get", "configmap", "-n", "kube-public", "cluster-info", "-o", "yaml"])?;
        has(&info, &["jws-kubeconfig-"])
    })?;
    machine.load_busybox(cluster)?;
    cluster.apply(WEB)?;
    cluster.kubectl(&["wait", "deployment", "web", "--for=condition=Available", "--timeout=280s"])?;
    let pods = [Web::on(cluster, "node-1")?, Web::on(cluster, "node-2")?];
    pods_and_services(cluster, machine, &pods)?;
    a_name_is_taken_once(machine, &words)?;
    an_agent_dies(cluster, machine, &pods)?;
    the_server_dies(cluster, machine, &pods)?;
    the_node_leaves(cluster, machine)
}

/// One of the web pods.
struct Web {
    name: String,
    ip: String,
    node_range: String,
}

impl Web {
    fn on(cluster: &Cluster, node: &str) -> Result<Web> {
        let on_node = format!("spec.nodeName={node}");
        let list = ["pods", "-l", "app=web", "--field-selector", &on_node];
        Ok(Web {
            name: cluster.field(&list, "/items/0/metadata/name")?,
            ip: cluster.field(&list, "/items/0/status/podIP")?,
            node_range: cluster.field(&["node", node], "/spec/podCIDR")?,
        })
    }

    fn sh(&self, cluster: &Cluster, script: &str) -> Result<String> {
        cluster.kubectl(&["exec", &self.name, "--", "sh", "-c", script])
    }
}

fn strangers_are_refused(machine: &Machine, words: &[&str]) -> Result<()> {
    let join = |words: &[&str]| {
        refusal(
            machine.gantry(&[&["agent", "--node-name", "node-2", "--node-ip", NODE_2_IP], words].concat()),
        )
    };
    let [_, server, _, token, _, hash] = words else { anyhow::bail!("odd words {words:?}") };
    has(&join(&["--token", token])?, &["give --server"])?;
    has(&join(&["--server", server, "--token", token])?, &["--ca-hash", "--insecure-trust-first"])?;
    let other = format!("sha256:{}", "0".repeat(64));
    has(
        &join(&["--server", server, "--token", token, "--ca-hash", &other])?,
        &["the server has the authority", hash],
    )?;
    has(&join(&["--server", server, "--ca-hash", hash])?, &["no valid certificate yet", "--token"])?;
    let wrong = "abcdef.0123456789abcdef";
    has(&join(&["--server", server, "--token", wrong, "--ca-hash", hash])?, &["does not accept the token"])
}

/// Who answers 16 requests to a host that `ask` makes.
fn who(ask: impl Fn(&str) -> Result<String>, host: &str) -> Result<BTreeSet<String>> {
    let script = format!("for i in $(seq 16); do get {host} || echo failed; done");
    Ok(ask(&script)?.lines().map(str::to_string).collect())
}

fn pods_and_services(cluster: &Cluster, machine: &Machine, pods: &[Web; 2]) -> Result<()> {
    ensure!(pods[0].node_range != pods[1].node_range, "one range for two nodes: {}", pods[0].node_range);
    let both: BTreeSet<String> = pods.iter().map(|p| p.name.clone()).collect();
    for (from, to) in [(&pods[0], &pods[1]), (&pods[1], &pods[0])] {
        cluster.eventually("pod to pod", || {
            let said = from.sh(cluster, &format!("get {} 8080", to.ip))?;
            ensure!(said.trim() == to.name, "{said}");
            Ok(())
        })?;
        cluster.eventually("the service by its name", || {
            let who = who(|script| from.sh(cluster, script), "web")?;
            ensure!(who == both, "from {}: {who:?}", from.name);
            Ok(())
        })?;
        // As large as it gets: a packet that does not fit would be lost.
        let large = "head -c 300000 /dev/zero > /tmp/large; mv /tmp/large /www/large";
        to.sh(cluster, large)?;
        let fetch = format!("printf 'GET /large HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {} 8080 | wc -c", to.ip);
        cluster.eventually("large packets", || {
            let size: usize = from.sh(cluster, &fetch)?.trim().parse()?;
            ensure!(size > 300_000, "{size}");
            Ok(())
        })?;
        logged(cluster, &to.name, &["up"])?;
    }
    // From both nodes, to both pods: by the service's address and by either's node port.
    let ip = cluster.field(&["service", "web"], "/spec/clusterIP")?;
    for url in
        [format!("http://{ip}/"), "http://10.99.0.1:30080/".into(), format!("http://{NODE_2_IP}:30080/")]
    {
        cluster.eventually("nodes to the service", || {
            let curl = |url: &str| format!("for i in $(seq 16); do curl -sS --max-time 5 {url}; done");
            for said in [cluster.sh(&curl(&url))?, machine.sh(&curl(&url))?] {
                let who: BTreeSet<String> = said.lines().map(str::to_string).collect();
                ensure!(who == both, "{url}: {who:?}");
            }
            Ok(())
        })?;
    }
    cluster.eventually("the API's service from the second node", || {
        has(&pods[1].sh(cluster, "nc -w 3 kubernetes.default.svc 443 < /dev/null && echo open")?, &["open"])
    })?;
    has(&machine.gantry(&["status"])?, &["node-2", "https://10.99.0.1:6443"])
}

/// Another machine (another name and folder, the same wire) does not get the name of a node that lives.
fn a_name_is_taken_once(machine: &Machine, words: &[&str]) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut command = machine.inside(GANTRY);
    command.arg("agent").args(words).args([
        "--name",
        "thief",
        "--node-name",
        "node-2",
        "--node-ip",
        NODE_2_IP,
    ]);
    command.args(["--node-port", "10251", "--registry-port", "0", "--data-dir"]).arg(folder.path());
    has(&refusal(run(&mut command))?, &["refused (Denied)", "is there and Ready"])
}

/// Killed, the agent leaves its pods alone; it comes back without a token, and renews a certificate that is due.
fn an_agent_dies(cluster: &Cluster, machine: &mut Machine, pods: &[Web; 2]) -> Result<()> {
    machine.signal("-KILL")?;
    cluster.eventually("its pod answers", || {
        let said = pods[0].sh(cluster, &format!("get {} 8080", pods[1].ip))?;
        ensure!(said.trim() == pods[1].name, "{said}");
        Ok(())
    })?;
    let file = machine.folder.path().join("pki/node-client.pem");
    let ca = auth::Ca::load_or_create(&cluster.folder().join("pki"), SystemTime::now())?;
    let (csr, key) = auth::csr::new_request("system:node:node-2", "system:nodes", &[], &[])?;
    // Valid since an hour ago, for ten minutes more: past 80 % of its life.
    let due = ca.sign(&csr, auth::csr::Usage::Client, Duration::from_secs(600), SystemTime::now())?;
    fs::write(&file, format!("{due}{key}"))?;
    machine.start(&[])?;
    cluster.eventually("the due certificate is renewed", || {
        ensure!(!fs::read_to_string(&file)?.contains(&due), "{}", machine.log());
        Ok(())
    })?;
    cluster.eventually("exec on the agent that came back", || pods[1].sh(cluster, "true"))?;
    let restarts = cluster.field(&["pod", &pods[1].name], "/status/containerStatuses/0/restartCount")?;
    ensure!(restarts == "0", "restarted {restarts} times");
    Ok(())
}

/// While the server is away, services keep their last state on both nodes; then all goes on.
fn the_server_dies(cluster: &mut Cluster, machine: &Machine, pods: &[Web; 2]) -> Result<()> {
    let ip = cluster.field(&["service", "web"], "/spec/clusterIP")?;
    let both: BTreeSet<String> = pods.iter().map(|p| p.name.clone()).collect();
    let script = format!("for i in $(seq 32); do curl -sS --max-time 5 http://{ip}/; done");
    let answers = |cluster: &Cluster, what: &str| {
        cluster.eventually(what, || {
            for said in [machine.sh(&script)?, cluster.sh(&script)?] {
                let who: BTreeSet<String> = said.lines().map(str::to_string).collect();
                ensure!(who == both, "{who:?}");
            }
            Ok(())
        })
    };
    // (The agent was away for a while: its pod may have been taken out.)
    answers(cluster, "with a server")?;
    cluster.kill9()?;
    answers(cluster, "without a server")?;
    cluster.up()?;
    cluster.eventually("the agent is back", || pods[1].sh(cluster, "true"))?;
    // What changed meanwhile, or changes now, reaches the second node.
    cluster.kubectl(&["create", "service", "clusterip", "later", "--tcp=80:8080"])?;
    cluster.kubectl(&["patch", "service", "later", "-p", r#"{"spec":{"selector":{"app":"web"}}}"#])?;
    cluster.eventually("a service that came later", || {
        let who = who(|script| pods[1].sh(cluster, script), "later")?;
        ensure!(who == both, "{who:?}");
        Ok(())
    })
}

fn the_node_leaves(cluster: &Cluster, machine: &mut Machine) -> Result<()> {
    let range = cluster.field(&["node", "node-2"], "/spec/podCIDR")?;
    cluster.eventually("the route", || has(&cluster.sh("ip route")?, &[&range]))?;
    let left = machine.down()?;
    ensure!(left.is_empty(), "left behind: {left:#?}");
    cluster.kubectl(&["delete", "node", "node-2"])?;
    cluster.eventually("the first node forgets the second", || {
        let said = cluster.sh("ip route; ip -o link")?;
        ensure!(
            !said.contains(&range)
                && !said.contains("vxlan")
                && !said.contains(&format!("{}x:", cluster.name())),
            "{said}"
        );
        Ok(())
    })
}
