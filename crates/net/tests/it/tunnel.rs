//! Two nodes: pods, services and the nodes themselves reach pods at the other one by the tunnel.

use std::net::Ipv4Addr;
use std::os::fd::AsFd;

use net::{Endpoint, NetConfig, Network, Peer, PodNet};
use sys::netlink::{in_netns, new_netns};

use crate::lab::*;

const FAR_SERVER: &str = "far";

fn far_config() -> NetConfig {
    NetConfig {
        prefix: "gtu".into(),
        node_ip: OUTSIDE,
        pod_cidr: "10.244.1.0/24".parse().unwrap(),
        ..config()
    }
}

fn peer(config: &NetConfig) -> Peer {
    Peer { node_ip: config.node_ip, pod_cidr: config.pod_cidr }
}

/// The second node, on the lab's outside host.
fn far_node(lab: &Lab) -> Network {
    let open = || {
        let net = Network::open(far_config()).unwrap();
        net.setup_node().unwrap();
        net
    };
    in_netns(lab.outside.as_fd(), open).unwrap()
}

fn far_pod(net: &Network) -> Pod {
    let ns = new_netns().unwrap();
    let PodNet { ip, host_link } = net.attach(FAR_SERVER, &path(&ns)).unwrap();
    wait_link(&ns, "eth0");
    serve(&ns, FAR_SERVER);
    Pod { uid: FAR_SERVER.into(), ip, host_link, ns }
}

#[test]
fn pods_of_two_nodes_reach_each_other_and_services() {
    on_node(|lab| {
        let far = far_node(lab);
        let (a, b) = (lab.server("a"), far_pod(&far));
        // Nodes are told of all nodes, themselves among them.
        let all = [peer(&config()), peer(&far_config())];
        assert_eq!(lab.net.set_peers(&all).unwrap(), 3);
        far.set_peers(&all).unwrap();
        assert_eq!(ask(&a.ns, b.ip, 8080).unwrap(), (FAR_SERVER.into(), a.ip), "the source is kept");
        assert_eq!(ask(&b.ns, a.ip, 8080).unwrap(), ("a".into(), b.ip));
        let own_end = Ipv4Addr::new(10, 244, 0, 0);
        assert_eq!(lab.ask(b.ip, 8080).unwrap(), (FAR_SERVER.into(), own_end), "node to far pod");
        let service = net::ServicePort {
            endpoints: vec![Endpoint { ip: b.ip, port: 8080, local: false, far: false }],
            ..service(&[])
        };
        lab.net.apply(&[service], &[]).unwrap();
        assert_eq!(ask(&a.ns, SERVICE, 80).unwrap(), (FAR_SERVER.into(), a.ip), "pod to service");
        assert_eq!(lab.ask(SERVICE, 80).unwrap().0, FAR_SERVER, "node to service");
        assert_eq!(lab.ask(Ipv4Addr::LOCALHOST, 30080).unwrap().0, FAR_SERVER, "loopback to node port");
        assert_eq!(
            ask(&lab.outside, NODE, 30080).unwrap(),
            (FAR_SERVER.into(), own_end),
            "a stranger's node port to a pod of another node"
        );
        in_netns(lab.outside.as_fd(), || net::teardown("gtu").unwrap()).unwrap();
    });
}

#[test]
fn peers_come_and_go_and_survive_a_restart() {
    on_node(|lab| {
        let far = far_node(lab);
        let (a, b) = (lab.server("a"), far_pod(&far));
        far.set_peers(&[peer(&config())]).unwrap();
        let third =
            Peer { node_ip: Ipv4Addr::new(192, 168, 77, 3), pod_cidr: "10.244.2.0/24".parse().unwrap() };
        lab.net.set_peers(&[peer(&far_config()), third]).unwrap();
        assert_eq!(lab.net.set_peers(&[peer(&far_config()), third]).unwrap(), 0, "nothing to change");
        assert!(ping(&a.ns, b.ip));
        // Another process takes over: the way stays open before anybody names a peer.
        let again = Network::open(config()).unwrap();
        again.setup_node().unwrap();
        assert!(ping(&a.ns, b.ip));
        assert_eq!(again.set_peers(&[peer(&far_config())]).unwrap(), 3, "the third node's three entries go");
        assert!(!sh("ip route; bridge fdb show dev gttx; ip neigh show dev gttx").contains("10.244.2."));
        assert!(ping(&a.ns, b.ip));
        // A node that comes back with another address keeps its range.
        let moved = Peer { node_ip: Ipv4Addr::new(192, 168, 77, 4), ..peer(&far_config()) };
        again.set_peers(&[moved]).unwrap();
        assert!(sh("bridge fdb show dev gttx").contains("dst 192.168.77.4"));
        assert!(!sh("bridge fdb show dev gttx").contains("dst 192.168.77.2"));
        again.set_peers(&[]).unwrap();
        assert!(!sh("ip -o link").contains("gttx"), "without peers there is no tunnel");
        assert!(ask_within(&a.ns, b.ip, 8080, SILENCE).is_err());
        in_netns(lab.outside.as_fd(), || net::teardown("gtu").unwrap()).unwrap();
    });
}

#[test]
fn an_address_of_another_node_cannot_be_forged() {
    on_node(|lab| {
        let far = far_node(lab);
        let (a, b) = (lab.server("a"), far_pod(&far));
        lab.net.set_peers(&[peer(&far_config())]).unwrap();
        far.set_peers(&[peer(&config())]).unwrap();
        assert!(ping(&b.ns, a.ip));
        // A pod with an address of the other node's range: dropped where it starts.
        let c = lab.pod("c");
        let stolen = Ipv4Addr::new(10, 244, 1, 200);
        in_netns(c.ns.as_fd(), || sh(&format!("ip addr add {stolen}/32 dev eth0"))).unwrap();
        let socket = udp(&c.ns, stolen);
        assert!(ask_udp(&socket, a.ip, 8080, SILENCE).is_err());
        assert!(ask_udp(&socket, b.ip, 8080, SILENCE).is_err());
        in_netns(lab.outside.as_fd(), || net::teardown("gtu").unwrap()).unwrap();
    });
}
