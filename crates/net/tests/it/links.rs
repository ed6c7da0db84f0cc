//! Links: reachability, source addresses, spoofing, recovery, findings, speed.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use net::{Finding, Network};
use sys::netlink::new_netns;

use crate::lab::*;

#[test]
fn pods_nodes_and_the_outside_reach_each_other() {
    on_node(|lab| {
        let (a, b) = (lab.server("a"), lab.server("b"));
        assert!(ping(&a.ns, b.ip) && ping(&b.ns, a.ip));
        assert_eq!(ask(&a.ns, b.ip, 8080).unwrap(), ("b".into(), a.ip), "source is kept between pods");
        assert_eq!(ask(&a.ns, Ipv4Addr::LOCALHOST, 8080).unwrap().0, "a", "loopback is up in the pod");
        assert_eq!(lab.ask(b.ip, 8080).unwrap(), ("b".into(), NODE), "node to pod");
        lab.serve_on_node(Ipv4Addr::UNSPECIFIED, 9000, "node");
        assert_eq!(ask(&a.ns, NODE, 9000).unwrap(), ("node".into(), a.ip), "pod to node");
        serve(&lab.outside, "outside");
        assert_eq!(
            ask(&a.ns, OUTSIDE, 8080).unwrap(),
            ("outside".into(), NODE),
            "masqueraded on its way out"
        );
        let nobody = ask(&a.ns, Ipv4Addr::new(10, 244, 0, 77), 8080).unwrap_err();
        assert_eq!(nobody.kind(), std::io::ErrorKind::HostUnreachable, "{nobody}");
    });
}

#[test]
fn a_pod_cannot_use_an_address_that_is_not_its_own() {
    on_node(|lab| {
        let (a, b) = (lab.pod("a"), lab.server("b"));
        let c = lab.pod("c");
        // Our own rule must do, whatever the host's filter says.
        sh(&format!("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.{}.rp_filter=0", a.host_link));
        // An unused address, another pod's, and the node's.
        for stolen in [Ipv4Addr::new(10, 244, 0, 99), c.ip, OUTSIDE] {
            sys::netlink::in_netns(std::os::fd::AsFd::as_fd(&a.ns), || {
                sh(&format!("ip addr add {stolen}/32 dev lo"))
            })
            .unwrap();
            // The answer would go astray in any case, so count at the receiver's link.
            let before = received(&b);
            assert!(ask_udp(&udp(&a.ns, stolen), b.ip, 8080, SILENCE).is_err());
            assert_eq!(received(&b), before, "{stolen} got through");
        }
        let before = received(&b);
        ask_udp(&udp(&a.ns, a.ip), b.ip, 8080, ANSWER).unwrap();
        assert_eq!(received(&b), before + 1);
        // The node's loopback is not reachable although node ports make it routable.
        lab.serve_on_node(Ipv4Addr::LOCALHOST, 9001, "private");
        sys::netlink::in_netns(std::os::fd::AsFd::as_fd(&a.ns), || sh("ip addr del 127.0.0.1/8 dev lo; ip route add 127.0.0.1 via 169.254.1.1 dev eth0 onlink; sysctl -qw net.ipv4.conf.all.route_localnet=1")).unwrap();
        assert!(ask_within(&a.ns, Ipv4Addr::LOCALHOST, 9001, SILENCE).is_err());
    });
}

fn received(pod: &Pod) -> u64 {
    sys::netlink::in_netns(std::os::fd::AsFd::as_fd(&pod.ns), || {
        let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        let line = text.lines().find(|line| line.trim_start().starts_with("eth0")).unwrap().to_owned();
        line.split_whitespace().nth(2).unwrap().parse().unwrap()
    })
    .unwrap()
}

#[test]
fn attaching_again_keeps_the_address_and_detaching_frees_it() {
    on_node(|lab| {
        let a = lab.pod("a");
        assert_eq!(lab.net.attach("a", &path(&a.ns)).unwrap().ip, a.ip, "same namespace");
        let fresh = new_netns().unwrap();
        assert_eq!(lab.net.attach("a", &path(&fresh)).unwrap().ip, a.ip, "another namespace");
        let b = lab.pod("b");
        assert!(ping(&fresh, b.ip) && !ping(&a.ns, b.ip));
        lab.net.detach("a").unwrap();
        lab.net.detach("a").unwrap();
        assert!(lab.net.pod("a").is_none());
        let links = sh("ip -o link");
        assert_eq!(links.matches(": gtt").count(), 1, "{links}");
        assert!(lab.net.attach("x", "/nonexistent".as_ref()).is_err());
        assert!(lab.net.pod("x").is_none(), "nothing is left of a failed attach");
        // A namespace that dies first takes its link along.
        drop(b.ns);
        lab.net.detach("b").unwrap();
    });
}

#[test]
fn the_pool_runs_dry_and_recovers() {
    on_node(|lab| {
        for n in 1..=254u8 {
            if n != 7 {
                lab.net.reserve(Ipv4Addr::new(10, 244, 0, n)).unwrap();
            }
        }
        assert!(lab.net.reserve(Ipv4Addr::new(10, 244, 1, 1)).is_err());
        let last = lab.pod("last");
        assert_eq!(last.ip, Ipv4Addr::new(10, 244, 0, 7));
        let ns = new_netns().unwrap();
        let full = lab.net.attach("more", &path(&ns)).unwrap_err();
        assert_eq!(full.to_string(), "no free pod address in 10.244.0.0/24");
        lab.net.detach("last").unwrap();
        assert_eq!(lab.net.attach("more", &path(&ns)).unwrap().ip, last.ip);
    });
}

#[test]
fn a_restart_adopts_what_lives_and_removes_what_leaked() {
    on_node(|lab| {
        let (a, b) = (lab.server("a"), lab.pod("b"));
        lab.net.apply(&[service(&[&a])], &[]).unwrap();
        let leaked = lab.pod("leaked");
        sh(&format!("ip route del {}/32; ip link add gttforeign type veth peer name gttother", a.ip));

        let second = Network::open(config()).unwrap();
        second.setup_node().unwrap();
        assert_eq!(ask(&b.ns, SERVICE, 80).unwrap_err().kind(), std::io::ErrorKind::HostUnreachable);
        let gone = ("gone".to_owned(), Ipv4Addr::new(10, 244, 0, 200));
        let found = second.recover(&[(a.uid.clone(), a.ip), (b.uid.clone(), b.ip), gone]).unwrap();
        assert_eq!(
            (found.adopted.len(), found.removed, found.missing),
            (2, vec!["leaked".into()], vec!["gone".into()])
        );
        assert_eq!(ask(&b.ns, SERVICE, 80).unwrap().0, "a", "route repaired, services never went away");
        assert!(second.apply(&[service(&[&a])], &[]).unwrap().replaced);
        assert_eq!(ask(&b.ns, SERVICE, 80).unwrap().0, "a");
        let c = second.attach("c", &path(&leaked.ns)).unwrap();
        assert!(c.ip != a.ip && c.ip != b.ip, "addresses in use are known");
        sh("ip link del gttforeign");
    });
}

#[test]
fn another_configuration_replaces_what_the_first_left() {
    on_node(|lab| {
        let pod = lab.server("a");
        lab.net.apply(&[service(&[&pod])], &[]).unwrap();
        let mut other = config();
        other.service_cidr = "10.112.0.0/16".parse().unwrap();
        other.dns_ip = Ipv4Addr::new(10, 112, 0, 10);
        let second = Network::open(other).unwrap();
        second.setup_node().unwrap();
        let left = sh("ip -4 addr show dev lo; ip route");
        assert!(left.contains("10.112.0.10/32") && left.contains("10.112.0.0/16 dev lo"), "{left}");
        assert!(!left.contains("10.96."), "{left}");
        assert_eq!(sh("cat /proc/sys/net/ipv4/ip_forward").trim(), "1");
    });
}

#[test]
fn a_table_of_our_name_that_is_not_ours_stays() {
    on_node(|lab| {
        net::teardown("gtt").unwrap();
        sh("nft add table ip gtt; nft add chain ip gtt theirs");
        let error = lab.net.setup_node().unwrap_err().to_string();
        assert!(error.contains("\"ip gtt\" that is not ours"), "{error}");
        assert!(lab.net.apply(&[], &[]).is_err());
        assert!(!net::teardown("gtt").unwrap().table);
        assert!(sh("nft list table ip gtt").contains("chain theirs"));
        sh("nft delete table ip gtt");
    });
}

#[test]
fn findings_name_the_firewall_and_clashing_routes() {
    on_node(|lab| {
        assert_eq!(net::doctor(&config()).unwrap(), []);
        assert_eq!(
            net::overlaps("gtt", &[config().cluster_cidr, "192.168.0.0/16".parse().unwrap()]).unwrap().len(),
            1
        );
        sh(
            "nft add table inet fw; nft 'add chain inet fw FORWARD { type filter hook forward priority 0; policy drop; }'",
        );
        sh("ip route add 10.244.9.0/24 via 192.168.77.2; echo 0 > /proc/sys/net/ipv4/ip_forward");
        let found = net::doctor(&config()).unwrap();
        let text: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert!(
            matches!(found[..], [Finding::ForwardingOff, Finding::ForwardDrop { .. }, Finding::Overlap(_)]),
            "{text:?}"
        );
        assert!(text[1].contains("inet fw FORWARD") && text[1].contains("gtt+"), "{text:?}");
        assert!(text[2].ends_with("route 10.244.9.0/24 on wan0"), "{text:?}");
        sh("nft delete table inet fw; ip route del 10.244.9.0/24; echo 1 > /proc/sys/net/ipv4/ip_forward");
        drop(lab.pod("a"));
    });
}

#[test]
fn figures_of_attaching() {
    on_node(|lab| {
        let spaces: Vec<_> = (0..50).map(|_| new_netns().unwrap()).collect();
        let mut took: Vec<Duration> = Vec::new();
        for (n, ns) in spaces.iter().enumerate() {
            let start = Instant::now();
            lab.net.attach(&format!("pod-{n}"), &path(ns)).unwrap();
            took.push(start.elapsed());
        }
        took.sort();
        let start = Instant::now();
        assert_eq!(net::teardown("gtt").unwrap().links, 50);
        eprintln!(
            "attach min {:?} median {:?} max {:?}; teardown of 50 {:?}",
            took[0],
            took[25],
            took[49],
            start.elapsed()
        );
        lab.net.setup_node().unwrap();
    });
}
