//! A node in a namespace of its own, an outside host on a wire to it, and pods; servers that say who they
//! are and whom they saw.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use net::{Endpoint, NetConfig, Network, PodNet, Protocol, ServicePort};
use sys::netlink::{in_netns, new_netns};

pub const NODE: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 2);
pub const DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
pub const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 3, 4);
/// Long enough for a loaded machine, short enough for tests of silence.
pub const SILENCE: Duration = Duration::from_millis(400);
pub const ANSWER: Duration = Duration::from_secs(60);

pub struct Lab {
    pub net: Network,
    pub outside: OwnedFd,
    node: OwnedFd,
}

pub struct Pod {
    pub uid: String,
    pub ip: Ipv4Addr,
    pub host_link: String,
    pub ns: OwnedFd,
}

pub fn config() -> NetConfig {
    NetConfig {
        prefix: "gtt".into(),
        node_ip: NODE,
        pod_cidr: "10.244.0.0/24".parse().unwrap(),
        cluster_cidr: "10.244.0.0/16".parse().unwrap(),
        service_cidr: "10.96.0.0/12".parse().unwrap(),
        dns_ip: DNS,
        mtu: 1400,
    }
}

pub fn sh(command: &str) -> String {
    let out = Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(out.status.success(), "{command}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

pub fn path(ns: &OwnedFd) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), ns.as_raw_fd()).into()
}

pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + ANSWER;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What a host has that we could leave behind.
pub fn inventory() -> String {
    sh(
        "ip -br link | cut -d' ' -f1 | sort; ip -4 -o addr; ip -4 route show table all; nft list ruleset; cat /proc/sys/net/ipv4/ip_forward",
    )
}

/// Runs `test` on a fresh node; afterwards everything must be as it was before the network was set up.
pub fn on_node(test: impl FnOnce(&Lab) + Send) {
    let (node, outside) = (new_netns().unwrap(), new_netns().unwrap());
    let inside = node.try_clone().unwrap();
    in_netns(node.as_fd(), move || {
        sh("echo 0 > /proc/sys/net/ipv4/ip_forward; ip link set lo up");
        sh(&format!("ip link add wan0 type veth peer name eth0 netns {}", path(&outside).display()));
        sh(&format!("ip addr add {NODE}/24 dev wan0; ip link set wan0 up"));
        in_netns(outside.as_fd(), || {
            sh(&format!("ip link set lo up; ip addr add {OUTSIDE}/24 dev eth0; ip link set eth0 up"));
        })
        .unwrap();
        wait_link(&inside, "wan0");
        wait_link(&outside, "eth0");
        let before = inventory();
        let lab = Lab { net: Network::open(config()).unwrap(), outside, node: inside };
        lab.net.setup_node().unwrap();
        test(&lab);
        net::teardown("gtt").unwrap();
        assert_eq!(inventory(), before);
        assert_eq!(net::teardown("gtt").unwrap(), net::Removed::default());
    })
    .unwrap();
}

impl Lab {
    pub fn pod(&self, uid: &str) -> Pod {
        let ns = new_netns().unwrap();
        let PodNet { ip, host_link } = self.net.attach(uid, &path(&ns)).unwrap();
        wait_link(&self.node, &host_link);
        wait_link(&ns, "eth0");
        Pod { uid: uid.into(), ip, host_link, ns }
    }

    /// A pod that answers on port 8080 with its uid.
    pub fn server(&self, uid: &str) -> Pod {
        let pod = self.pod(uid);
        serve(&pod.ns, uid);
        pod
    }

    pub fn ask(&self, to: Ipv4Addr, port: u16) -> std::io::Result<(String, Ipv4Addr)> {
        ask(&self.node, to, port)
    }

    pub fn serve_on_node(&self, at: Ipv4Addr, port: u16, name: &str) {
        serve_at(&self.node, at, port, name);
    }
}

/// The kernel drops what goes through a link before a worker of its own has noticed that it is up.
pub fn wait_link(ns: &OwnedFd, link: &str) {
    let up = || sh(&format!("ip -o link show {link}")).contains("state UP");
    in_netns(ns.as_fd(), || wait_until("the link is up", up)).unwrap();
}

pub fn serve(ns: &OwnedFd, name: &str) {
    serve_at(ns, Ipv4Addr::UNSPECIFIED, 8080, name);
}

/// Serves TCP and UDP: answers with `name` and the client's address.
pub fn serve_at(ns: &OwnedFd, ip: Ipv4Addr, port: u16, name: &str) {
    let at = SocketAddrV4::new(ip, port);
    let (tcp, udp) =
        in_netns(ns.as_fd(), || (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap())).unwrap();
    let tcp_name = name.to_owned();
    std::thread::spawn(move || {
        while let Ok((mut stream, peer)) = tcp.accept() {
            let _ = write!(stream, "{tcp_name} {}", peer.ip());
        }
    });
    let name = name.to_owned();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(format!("{name} {}", peer.ip()).as_bytes(), peer);
        }
    });
}

fn parse(answer: &str) -> (String, Ipv4Addr) {
    let (name, peer) = answer.split_once(' ').unwrap_or_else(|| panic!("odd answer {answer:?}"));
    (name.to_owned(), peer.parse().unwrap())
}

/// Asks over TCP from inside `ns`: who answered, and whom it saw.
pub fn ask(ns: &OwnedFd, to: Ipv4Addr, port: u16) -> std::io::Result<(String, Ipv4Addr)> {
    ask_within(ns, to, port, ANSWER)
}

pub fn ask_within(
    ns: &OwnedFd,
    to: Ipv4Addr,
    port: u16,
    limit: Duration,
) -> std::io::Result<(String, Ipv4Addr)> {
    in_netns(ns.as_fd(), || {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((to, port)), limit)?;
        stream.set_read_timeout(Some(limit))?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(parse(&answer))
    })?
}

pub fn udp(ns: &OwnedFd, from: Ipv4Addr) -> UdpSocket {
    in_netns(ns.as_fd(), || UdpSocket::bind((from, 0)).unwrap()).unwrap()
}

/// Asks over a UDP socket that exists already.
pub fn ask_udp(
    socket: &UdpSocket,
    to: Ipv4Addr,
    port: u16,
    limit: Duration,
) -> std::io::Result<(String, Ipv4Addr)> {
    socket.set_read_timeout(Some(limit))?;
    socket.send_to(b"?", (IpAddr::V4(to), port))?;
    let mut buffer = [0; 64];
    let (len, _) = socket.recv_from(&mut buffer)?;
    Ok(parse(std::str::from_utf8(&buffer[..len]).unwrap()))
}

pub fn ping(ns: &OwnedFd, to: Ipv4Addr) -> bool {
    // A new tunnel may lose the first one, a busy machine may be late.
    let once = || {
        Command::new("busybox")
            .args(["ping", "-c1", "-W1", &to.to_string()])
            .output()
            .unwrap()
            .status
            .success()
    };
    in_netns(ns.as_fd(), || (0..20).any(|_| once())).unwrap()
}

/// A TCP service at `SERVICE:80` and node port 30080 over the given pods.
pub fn service(pods: &[&Pod]) -> ServicePort {
    ServicePort {
        name: "default/web:http".into(),
        cluster_ips: vec![SERVICE],
        external_ips: vec![],
        protocol: Protocol::Tcp,
        port: 80,
        node_port: Some(30080),
        endpoints: pods
            .iter()
            .map(|pod| Endpoint { ip: pod.ip, port: 8080, local: true, far: false })
            .collect(),
        affinity_secs: None,
        external_local: false,
        internal_local: false,
    }
}
