//! Services: balance, node ports, refusal, hairpin, affinity, policies, UDP, host ports, scale.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use net::{Endpoint, HostPort, Protocol, ServicePort};

use crate::lab::*;

fn counts(ns: &OwnedFd, to: Ipv4Addr, port: u16, rounds: u32) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for _ in 0..rounds {
        *counts.entry(ask(ns, to, port).unwrap().0).or_default() += 1;
    }
    counts
}

#[test]
fn three_endpoints_share_evenly_and_see_the_client() {
    on_node(|lab| {
        let pods = [lab.server("a"), lab.server("b"), lab.server("c")];
        let client = lab.pod("client");
        lab.net.apply(&[service(&[&pods[0], &pods[1], &pods[2]])], &[]).unwrap();
        let shares = counts(&client.ns, SERVICE, 80, 300);
        // Seven standard deviations around 100.
        assert!(shares.len() == 3 && shares.values().all(|n| (42..159).contains(n)), "{shares:?}");
        assert_eq!(ask(&client.ns, SERVICE, 80).unwrap().1, client.ip, "source is kept");
        assert_eq!(lab.ask(SERVICE, 80).unwrap().1, NODE, "the node reaches services too");
        for (ns, to) in [(&lab.outside, NODE), (&client.ns, NODE)] {
            assert_eq!(counts(ns, to, 30080, 70).len(), 3);
        }
        assert_eq!(
            ask(&lab.outside, NODE, 30080).unwrap().1,
            OUTSIDE,
            "a local endpoint sees the outside client"
        );
        assert_eq!(lab.ask(NODE, 30080).unwrap().1, NODE);
        assert_eq!(lab.ask(Ipv4Addr::LOCALHOST, 30080).unwrap().1, NODE, "node port on 127.0.0.1");
        // An endpoint reaches itself through the service sooner or later, as somebody else.
        for _ in 0..20 {
            let (name, seen) = ask(&pods[0].ns, SERVICE, 80).unwrap();
            assert_eq!(seen, if name == "a" { NODE } else { pods[0].ip });
        }
    });
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    on_node(|lab| {
        let pod = lab.server("a");
        lab.net.apply(&[service(&[&pod])], &[]).unwrap();
        assert_eq!(ask(&pod.ns, SERVICE, 80).unwrap(), ("a".into(), NODE));
        assert_eq!(ask(&pod.ns, NODE, 30080).unwrap(), ("a".into(), NODE));
    });
}

#[test]
fn no_endpoint_is_refused_at_once_and_policy_drops() {
    on_node(|lab| {
        let client = lab.pod("client");
        let refused = |ns: &OwnedFd, to, port| {
            let error = ask(ns, to, port).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}:{port} {error}");
        };
        lab.net.apply(&[service(&[])], &[]).unwrap();
        refused(&client.ns, SERVICE, 80);
        refused(&client.ns, SERVICE, 81);
        refused(&client.ns, Ipv4Addr::new(10, 97, 1, 1), 80);
        refused(&client.ns, NODE, 30080);
        refused(&lab.outside, NODE, 30080);
        for (to, port) in [(SERVICE, 80), (NODE, 30080), (Ipv4Addr::LOCALHOST, 30080), (SERVICE, 81)] {
            assert_eq!(lab.ask(to, port).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        }
        let socket = udp(&client.ns, client.ip);
        socket.connect((SERVICE, 80)).unwrap();
        socket.set_read_timeout(Some(ANSWER)).unwrap();
        socket.send(b"?").unwrap();
        assert_eq!(socket.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionRefused, "UDP");

        let mut elsewhere = service(&[]);
        elsewhere.endpoints =
            vec![Endpoint { ip: Ipv4Addr::new(10, 244, 9, 9), port: 1, local: false, far: false }];
        elsewhere.internal_local = true;
        lab.net.apply(&[elsewhere], &[]).unwrap();
        let error = ask_within(&client.ns, SERVICE, 80, SILENCE).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    });
}

#[test]
fn external_local_serves_outsiders_from_this_node_only() {
    on_node(|lab| {
        let (a, client) = (lab.server("a"), lab.pod("client"));
        // The "other node's" endpoint is the outside host: reached with the source made ours.
        serve(&lab.outside, "far");
        let mut web = service(&[&a]);
        web.external_ips = vec![NODE];
        web.endpoints.push(Endpoint { ip: OUTSIDE, port: 8080, local: false, far: false });
        lab.net.apply(std::slice::from_ref(&web), &[]).unwrap();
        assert_eq!(counts(&lab.outside, NODE, 80, 40).len(), 2);
        let far = (0..60).map(|_| ask(&lab.outside, NODE, 30080).unwrap()).find(|(name, _)| name == "far");
        assert_eq!(far, Some(("far".into(), NODE)), "sent elsewhere as ours");
        web.external_local = true;
        lab.net.apply(std::slice::from_ref(&web), &[]).unwrap();
        for port in [80, 30080] {
            assert_eq!(counts(&lab.outside, NODE, port, 20), BTreeMap::from([("a".into(), 20)]));
            assert_eq!(counts(&client.ns, NODE, port, 40).len(), 2, "inside the cluster all endpoints serve");
        }
        web.endpoints.remove(0);
        lab.net.apply(&[web], &[]).unwrap();
        let error = ask_within(&lab.outside, NODE, 30080, SILENCE).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    });
}

#[test]
fn a_client_with_affinity_stays_until_its_endpoint_goes() {
    on_node(|lab| {
        let pods = [lab.server("a"), lab.server("b"), lab.server("c")];
        let client = lab.pod("client");
        let mut web = service(&[&pods[0], &pods[1], &pods[2]]);
        // Long enough for a machine that stalls between two requests.
        web.affinity_secs = Some(20);
        lab.net.apply(std::slice::from_ref(&web), &[]).unwrap();
        let shares = counts(&client.ns, SERVICE, 80, 20);
        assert_eq!(shares.len(), 1, "{shares:?}");
        assert_eq!(counts(&client.ns, NODE, 30080, 20).len(), 1);
        // nft aborts on rules that it cannot name; other programs on the host rely on it.
        let listed = sh("nft list table ip gtt");
        assert!(
            listed.contains("update @a_c { ip saddr . ip daddr . meta l4proto . th dport timeout 20s"),
            "{listed}"
        );
        let first = shares.into_keys().next().unwrap();
        web.endpoints.retain(|endpoint| pods.iter().all(|pod| pod.uid != first || pod.ip != endpoint.ip));
        assert_eq!(web.endpoints.len(), 2);
        assert!(!lab.net.apply(std::slice::from_ref(&web), &[]).unwrap().replaced);
        let shares = counts(&client.ns, SERVICE, 80, 20);
        assert!(shares.len() == 1 && !shares.contains_key(&first), "{shares:?}");
        // Once forgotten, a client is balanced anew; two seconds of silence forget it.
        web.affinity_secs = Some(2);
        lab.net.apply(&[web], &[]).unwrap();
        let mut seen = BTreeMap::new();
        let deadline = Instant::now() + Duration::from_secs(240);
        while seen.len() < 2 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2200));
            seen.extend(counts(&client.ns, SERVICE, 80, 1));
        }
        assert_eq!(seen.len(), 2, "affinity never ended");
    });
}

#[test]
fn a_table_that_others_damaged_is_replaced() {
    on_node(|lab| {
        let (a, client) = (lab.server("a"), lab.pod("client"));
        let mut web = service(&[&a]);
        lab.net.apply(std::slice::from_ref(&web), &[]).unwrap();
        assert_eq!(lab.net.apply(std::slice::from_ref(&web), &[]).unwrap(), net::Applied::default());
        for damage in ["nft flush map ip gtt f_c", "nft delete table ip gtt"] {
            sh(damage);
            web.port += 1;
            let applied = lab.net.apply(std::slice::from_ref(&web), &[]).unwrap();
            assert!(applied.replaced, "{damage}");
            assert_eq!(ask(&client.ns, SERVICE, web.port).unwrap().0, "a");
        }
    });
}

#[test]
fn udp_flows_leave_a_dead_endpoint() {
    on_node(|lab| {
        let (a, b) = (lab.server("a"), lab.server("b"));
        let client = lab.pod("client");
        let mut dns = service(&[&a]);
        dns.protocol = Protocol::Udp;
        lab.net.apply(std::slice::from_ref(&dns), &[]).unwrap();
        let socket = udp(&client.ns, client.ip);
        let node = udp(&lab.outside, OUTSIDE);
        assert_eq!(ask_udp(&socket, SERVICE, 80, ANSWER).unwrap(), ("a".into(), client.ip));
        assert_eq!(ask_udp(&node, NODE, 30080, ANSWER).unwrap().0, "a");
        dns.endpoints = vec![Endpoint { ip: b.ip, port: 8080, local: true, far: false }];
        let applied = lab.net.apply(&[dns], &[]).unwrap();
        assert_eq!((applied.forgotten_flows, applied.replaced), (2, false));
        assert_eq!(ask_udp(&socket, SERVICE, 80, ANSWER).unwrap().0, "b", "same socket, new endpoint");
        assert_eq!(ask_udp(&node, NODE, 30080, ANSWER).unwrap().0, "b");
    });
}

#[test]
fn host_ports_and_the_nodes_dns_server() {
    on_node(|lab| {
        let (a, client) = (lab.server("a"), lab.pod("client"));
        let port = |host_ip, host_port| HostPort {
            host_ip,
            protocol: Protocol::Tcp,
            host_port,
            pod_ip: a.ip,
            pod_port: 8080,
        };
        let mut dns: ServicePort = service(&[]);
        (dns.cluster_ips, dns.node_port) = (vec![DNS], None);
        lab.net.apply(&[dns], &[port(None, 8000), port(Some(NODE), 8001)]).unwrap();
        for host_port in [8000, 8001] {
            assert_eq!(ask(&lab.outside, NODE, host_port).unwrap(), ("a".into(), OUTSIDE));
            assert_eq!(ask(&client.ns, NODE, host_port).unwrap().0, "a");
        }
        assert_eq!(lab.ask(Ipv4Addr::LOCALHOST, 8000).unwrap().0, "a");
        assert!(lab.ask(Ipv4Addr::LOCALHOST, 8001).is_err());
        lab.serve_on_node(DNS, 53, "dns");
        assert_eq!(ask_udp(&udp(&client.ns, client.ip), DNS, 53, ANSWER).unwrap(), ("dns".into(), client.ip));
        assert_eq!(ask(&client.ns, DNS, 53).unwrap(), ("dns".into(), client.ip));
        assert_eq!(lab.ask(DNS, 53).unwrap().0, "dns");
    });
}

#[test]
fn figures_of_a_thousand_services() {
    on_node(|lab| {
        let (a, b, client) = (lab.server("a"), lab.server("b"), lab.pod("client"));
        let mut services: Vec<ServicePort> = (0..1000u32)
            .map(|n| ServicePort {
                cluster_ips: vec![Ipv4Addr::from_bits(0x0a61_0000 + n)],
                node_port: None,
                ..service(&[&a, &b])
            })
            .collect();
        let start = Instant::now();
        let first = lab.net.apply(&services, &[]).unwrap();
        let (load, start) = (start.elapsed(), Instant::now());
        services[500].endpoints.pop();
        let one = lab.net.apply(&services, &[]).unwrap();
        let change = start.elapsed();
        assert!(first.replaced && !one.replaced);
        // Two elements of the pair go, the front moves to another group, one element comes; the group is new.
        assert_eq!((first.changes, one.changes), (1000 * 3 + 2 + 1, 6));
        assert_eq!(counts(&client.ns, Ipv4Addr::from_bits(0x0a61_0000 + 500), 80, 10).len(), 1);
        assert_eq!(counts(&client.ns, Ipv4Addr::from_bits(0x0a61_0000 + 999), 80, 40).len(), 2);
        eprintln!("1,000 services x 2 endpoints: {load:?}; one change: {change:?}");
    });
}
