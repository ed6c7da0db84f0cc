//! Services and cluster DNS as pods and the host see them.

use crate::{all, busy, has, pod, ready};
use anyhow::{Result, ensure};
use std::collections::BTreeSet;
use testkit::cluster::Cluster;

const PODS: &str = r#"
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
      containers:
      - name: c
        image: busybox
        imagePullPolicy: IfNotPresent
        command: [sh, -c, "hostname > /www/index.html; exec httpd -f -p 8080 -h /www"]
        ports: [{name: http, containerPort: 8080}]
        readinessProbe: {tcpSocket: {port: http}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: www, port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: web-node}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080, nodePort: 30080}]}
---
apiVersion: v1
kind: Service
metadata: {name: web-lb}
spec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 8090, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: web-sticky}
spec: {sessionAffinity: ClientIP, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: web-none}
spec: {clusterIP: None, selector: {app: web}, ports: [{name: www, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: alias}
spec: {type: ExternalName, externalName: web.default.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: byhand}
spec: {ports: [{port: 80, targetPort: 8080}]}
"#;

#[test]
fn services_reach_their_pods() {
    let cluster = busy();
    cluster.apply(PODS).unwrap();
    cluster.apply(&pod("client", "exec sleep 1000", "", "")).unwrap();
    ready(&cluster, "web").unwrap();
    ready(&cluster, "client").unwrap();
    cluster.kubectl(&["wait", "deployment", "web", "--for=condition=Available", "--timeout=280s"]).unwrap();
    all(
        &cluster,
        &[
            ("cluster_ip", cluster_ip),
            ("names", names),
            ("outside", outside),
            ("affinity", affinity),
            ("nobody", nobody),
            ("api", api),
            ("pods", pods),
            ("by_hand", by_hand),
            ("unknown_names", unknown_names),
        ],
    );
    follow(&cluster).unwrap();
}

/// A script in the client pod.
fn client(cluster: &Cluster, script: &str) -> Result<String> {
    cluster.kubectl(&["exec", "client", "--", "sh", "-c", script])
}

/// Who answers 16 requests.
fn who(cluster: &Cluster, host: &str) -> Result<BTreeSet<String>> {
    let script = format!("for i in $(seq 16); do get {host} || echo failed; done");
    Ok(client(cluster, &script)?.lines().map(str::to_string).collect())
}

fn web_pods(cluster: &Cluster) -> Result<BTreeSet<String>> {
    let names = cluster.kubectl(&["get", "pods", "-l", "app=web", "-o", "name"])?;
    Ok(names.lines().map(|n| n.trim_start_matches("pod/").to_string()).collect())
}

fn cluster_ip(cluster: &Cluster) -> Result<()> {
    let ip = cluster.field(&["service", "web"], "/spec/clusterIP")?;
    let pods = web_pods(cluster)?;
    cluster.eventually("both pods answer", || {
        for host in [&*ip, "web", "web.default", "web.default.svc", "web.default.svc.cluster.local"] {
            let who = who(cluster, host)?;
            ensure!(who == pods, "{host}: {who:?}, not {pods:?}");
        }
        let script = format!("for i in 1 2 3 4 5 6 7 8; do curl -sS --max-time 3 http://{ip}/; done");
        let host: BTreeSet<String> = cluster.sh(&script)?.lines().map(str::to_string).collect();
        ensure!(host == pods, "from the node: {host:?}");
        Ok(())
    })
}

fn names(cluster: &Cluster) -> Result<()> {
    cluster.eventually("names", || all_names(cluster))
}

fn all_names(cluster: &Cluster) -> Result<()> {
    let ask = |kind: &str, name: &str| client(cluster, &format!("nslookup -type={kind} {name} 2>&1"));
    let ip = cluster.field(&["service", "web"], "/spec/clusterIP")?;
    has(&ask("a", "web.default.svc.cluster.local.")?, &[&format!("Address: {ip}")])?;
    let headless = ask("a", "web-none.default.svc.cluster.local.")?;
    let list = cluster.get(&["pods", "-l", "app=web"])?;
    for pod in list["items"].as_array().into_iter().flatten() {
        has(&headless, &[pod["status"]["podIP"].as_str().unwrap_or("no IP")])?;
    }
    let srv = ask("srv", "_www._tcp.web-none.default.svc.cluster.local.")?;
    has(&srv, &["8080", "web-none.default.svc.cluster.local"])?;
    has(&ask("srv", "_www._tcp.web.default.svc.cluster.local.")?, &[" 80 web.default.svc.cluster.local"])?;
    has(
        &ask("cname", "alias.default.svc.cluster.local.")?,
        &["canonical name = web.default.svc.cluster.local"],
    )?;
    ensure!(who(cluster, "alias")? == web_pods(cluster)?, "through ExternalName");
    let reverse: Vec<&str> = ip.split('.').rev().collect();
    let ptr = ask("ptr", &format!("{}.in-addr.arpa.", reverse.join(".")))?;
    has(&ptr, &["name = web.default.svc.cluster.local"])
}

fn outside(cluster: &Cluster) -> Result<()> {
    cluster.wait_field(&["service", "web-lb"], "/status/loadBalancer/ingress/0/ip", "10.99.0.1")?;
    for address in ["10.99.0.1:30080", "127.0.0.1:30080", "10.99.0.1:8090"] {
        cluster.eventually(address, || {
            let said = cluster.sh(&format!("curl -sS --max-time 2 http://{address}/"))?;
            ensure!(web_pods(cluster)?.contains(said.trim()), "{address}: {said}");
            Ok(())
        })?;
    }
    cluster.eventually("from a pod", || {
        let said = client(cluster, "get 10.99.0.1 30080; get 10.99.0.1 8090")?;
        ensure!(said.lines().count() == 2, "{said}");
        Ok(())
    })?;
    has(&cluster.kubectl(&["get", "svc", "web-lb"])?, &["LoadBalancer", "10.99.0.1", "8090:"])
}

fn affinity(cluster: &Cluster) -> Result<()> {
    cluster.eventually("one pod answers one client", || {
        let who = who(cluster, "web-sticky")?;
        ensure!(who.len() == 1 && who.is_subset(&web_pods(cluster)?), "{who:?}");
        Ok(())
    })
}

fn nobody(cluster: &Cluster) -> Result<()> {
    let ip = cluster.field(&["service", "nobody"], "/spec/clusterIP")?;
    cluster.eventually("refused at once", || {
        let said = client(cluster, &format!("get {ip} 2>&1; true"))?;
        has(&said, &["Connection refused"])?;
        let said = cluster.sh(&format!("curl -sS --max-time 8 http://{ip}/ 2>&1; true"))?;
        // curl's words of a refused connection.
        has(&said, &["Couldn't connect to server"])
    })
}

fn api(cluster: &Cluster) -> Result<()> {
    cluster.eventually("the API's service", || {
        let said = client(cluster, "nc -w 3 kubernetes.default.svc 443 < /dev/null && echo open")?;
        ensure!(said == "open\n", "{said}");
        // Unknown callers may read the version only; that TLS and routing work is the point.
        has(&cluster.sh("curl -sSk --max-time 5 https://10.96.0.1/version")?, &["\"gitVersion\""])
    })?;
    let endpoint = cluster.field(&["endpoints", "kubernetes"], "/subsets/0/addresses/0/ip")?;
    ensure!(endpoint == "10.99.0.1", "{endpoint}");
    Ok(())
}

fn pods(cluster: &Cluster) -> Result<()> {
    cluster.eventually("every pod answers", || every_pod(cluster))
}

fn every_pod(cluster: &Cluster) -> Result<()> {
    let list = cluster.get(&["pods", "-l", "app=web"])?;
    for pod in list["items"].as_array().into_iter().flatten() {
        let ip = pod["status"]["podIP"].as_str().unwrap_or_default();
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        ensure!(client(cluster, &format!("get {ip} 8080"))?.trim() == name, "pod to pod");
        ensure!(
            cluster.sh(&format!("curl -sS --max-time 3 http://{ip}:8080/"))?.trim() == name,
            "node to pod"
        );
        // Through its own service a pod may meet itself; endpoints are drawn at random.
        let itself = "for i in $(seq 8); do get web; done";
        let met = cluster.kubectl(&["exec", name, "--", "sh", "-c", itself])?;
        ensure!(met.lines().any(|met| met == name), "hairpin: {name} met {met:?}");
        ensure!(client(cluster, &format!("ping -c 1 -W 3 {ip}"))?.contains("1 packets received"), "ping");
    }
    Ok(())
}

fn by_hand(cluster: &Cluster) -> Result<()> {
    let ip = cluster.field(&["pods", "-l", "app=web"], "/items/0/status/podIP")?;
    cluster.apply(&format!(
        "apiVersion: v1\nkind: Endpoints\nmetadata: {{name: byhand}}\nsubsets: [{{addresses: [{{ip: {ip}}}], ports: [{{port: 8080}}]}}]"
    ))?;
    cluster.eventually("hand-written endpoints serve", || {
        let who = who(cluster, "byhand")?;
        ensure!(who.len() == 1 && who.is_subset(&web_pods(cluster)?), "{who:?}");
        Ok(())
    })
}

fn unknown_names(cluster: &Cluster) -> Result<()> {
    // Known to be unknown: whoever asked outside would hear something else, as below.
    cluster.eventually("a name of the cluster that is unknown", || {
        has(&client(cluster, "nslookup nope.default.svc.cluster.local. 2>&1; true")?, &["NXDOMAIN"])
    })?;
    let said = client(cluster, "nslookup nope.example. 2>&1; true")?;
    ensure!(said.contains("SERVFAIL") || said.contains("NXDOMAIN") || said.contains("timed out"), "{said}");
    ensure!(!said.contains("Name:"), "{said}");
    Ok(())
}

/// Endpoints follow scaling and deletion: after the last pod is gone, connections are refused; then served again.
fn follow(cluster: &Cluster) -> Result<()> {
    let ip = cluster.field(&["service", "web"], "/spec/clusterIP")?;
    cluster.kubectl(&["scale", "deployment", "web", "--replicas=0"])?;
    cluster.eventually("refused", || {
        let said = client(cluster, &format!("get {ip} 2>&1; true"))?;
        has(&said, &["Connection refused"])
    })?;
    cluster.kubectl(&["scale", "deployment", "web", "--replicas=1"])?;
    cluster.eventually("served", || client(cluster, &format!("get {ip}")))?;
    cluster.kubectl(&["delete", "service", "web"])?;
    cluster.eventually("nobody listens", || {
        let said = client(cluster, &format!("get {ip} 2>&1; true"))?;
        ensure!(!said.contains("web-"), "{said}");
        let name = client(cluster, "nslookup web.default.svc.cluster.local. 2>&1; true")?;
        has(&name, &["NXDOMAIN"])
    })
}
