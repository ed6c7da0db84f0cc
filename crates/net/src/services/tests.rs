//! Tests of the pure half of services: text snapshots of `desired`, properties of `diff`.

use proptest::prelude::*;

use super::*;

const DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, 0, last)
}

fn service(endpoints: &[(u8, bool)]) -> ServicePort {
    ServicePort {
        name: "default/web:http".into(),
        cluster_ips: vec![Ipv4Addr::new(10, 96, 0, 1)],
        external_ips: vec![],
        protocol: Protocol::Tcp,
        port: 80,
        node_port: None,
        endpoints: endpoints
            .iter()
            .map(|(last, local)| Endpoint { ip: ip(*last), port: 8080, local: *local, far: false })
            .collect(),
        affinity_secs: None,
        external_local: false,
        internal_local: false,
    }
}

fn show(ruleset: &Ruleset) -> String {
    let front =
        |f: &Front| format!("{:?} {}:{}", f.view, f.ip.map_or("*".into(), |ip| ip.to_string()), f.port);
    let mut lines: Vec<String> = ruleset.groups.iter().map(|group| format!("group {group}")).collect();
    lines.extend(ruleset.elements.iter().map(|element| match element {
        Element::Front(f, Target::Group(group)) => format!("{} -> {group}", front(f)),
        Element::Front(f, target) => format!("{} -> {target:?}", front(f)),
        Element::Back(group, f, slot, (ip, port)) => format!("{group} {} #{slot} = {ip}:{port}", front(f)),
        Element::Alive(f, (ip, port)) => format!("alive {} {ip}:{port}", front(f)),
        Element::Hairpin(ip) => format!("hairpin {ip}"),
        Element::Remote(_, (ip, port)) => format!("remote {ip}:{port}"),
    }));
    lines.join("\n")
}

#[track_caller]
fn check(services: &[ServicePort], expect: &[&str]) {
    assert_eq!(show(&desired(services, &[], DNS)), expect.join("\n"));
}

#[test]
fn endpoints_take_slots() {
    check(
        &[service(&[(3, true), (2, false), (3, true)])],
        &[
            "group c2",
            "Address 10.96.0.1:80 -> c2",
            "c2 Address 10.96.0.1:80 #0 = 10.244.0.2:8080",
            "c2 Address 10.96.0.1:80 #1 = 10.244.0.3:8080",
            "hairpin 10.244.0.3",
            "remote 10.244.0.2:8080",
        ],
    );
}

#[test]
fn no_endpoint_rejects_and_no_local_one_drops() {
    check(&[service(&[])], &["Address 10.96.0.1:80 -> Reject"]);
    let mut local = service(&[(2, false)]);
    local.internal_local = true;
    check(&[local], &["Address 10.96.0.1:80 -> Drop"]);
}

#[test]
fn external_local_differs_outside_only() {
    let mut web = service(&[(2, false), (3, true)]);
    web.cluster_ips.clear();
    web.node_port = Some(30080);
    web.external_local = true;
    web.affinity_secs = Some(60);
    check(
        &[web],
        &[
            "group n2a60",
            "group m1a60",
            "Node *:30080 -> n2a60",
            "NodeOutside *:30080 -> m1a60",
            "n2a60 Node *:30080 #0 = 10.244.0.2:8080",
            "n2a60 Node *:30080 #1 = 10.244.0.3:8080",
            "m1a60 NodeOutside *:30080 #0 = 10.244.0.3:8080",
            "alive Node *:30080 10.244.0.2:8080",
            "alive Node *:30080 10.244.0.3:8080",
            "alive NodeOutside *:30080 10.244.0.3:8080",
            "hairpin 10.244.0.3",
            "remote 10.244.0.2:8080",
        ],
    );
}

#[test]
fn what_is_left_to_others_is_not_asked_but_by_local_policies() {
    let mut web = service(&[(2, false), (3, true)]);
    web.endpoints[1].far = true;
    check(
        &[web.clone()],
        &[
            "group c1",
            "Address 10.96.0.1:80 -> c1",
            "c1 Address 10.96.0.1:80 #0 = 10.244.0.2:8080",
            "remote 10.244.0.2:8080",
        ],
    );
    web.internal_local = true;
    check(
        &[web],
        &[
            "group c1",
            "Address 10.96.0.1:80 -> c1",
            "c1 Address 10.96.0.1:80 #0 = 10.244.0.3:8080",
            "hairpin 10.244.0.3",
        ],
    );
}

#[test]
fn own_dns_is_left_alone_until_it_has_endpoints() {
    let mut dns = service(&[]);
    dns.cluster_ips = vec![DNS];
    check(&[dns.clone()], &[]);
    dns.endpoints = service(&[(9, true)]).endpoints;
    assert!(show(&desired(&[dns], &[], DNS)).contains("Address 10.96.0.10:80 -> c1"));
}

#[test]
fn first_claim_wins_and_host_ports_come_last() {
    let mut web = service(&[(2, true)]);
    web.cluster_ips.clear();
    web.node_port = Some(8000);
    let host = |port, host_ip| HostPort {
        host_ip,
        protocol: Protocol::Tcp,
        host_port: port,
        pod_ip: ip(7),
        pod_port: 1,
    };
    let ports = [host(8000, None), host(8001, None), host(8000, Some(ip(200)))];
    let shown = show(&desired(&[web], &ports, DNS));
    assert!(shown.contains("n1 Node *:8000 #0 = 10.244.0.2:8080"), "{shown}");
    assert!(shown.contains("n1 Node *:8001 #0 = 10.244.0.7:1"), "{shown}");
    assert!(shown.contains("c1 Address 10.244.0.200:8000 #0 = 10.244.0.7:1"), "{shown}");
    assert!(!shown.contains("*:8000 #0 = 10.244.0.7"), "{shown}");
}

#[test]
fn udp_survivors_are_the_endpoints_left() {
    let mut dns = service(&[(2, true), (3, true)]);
    dns.protocol = Protocol::Udp;
    let old = desired(&[dns.clone()], &[], DNS);
    dns.endpoints.pop();
    let new = desired(&[dns], &[], DNS);
    let survivors = udp_survivors(&diff(&old, &new), &new);
    let front = (Some(Ipv4Addr::new(10, 96, 0, 1)), 80);
    assert_eq!(survivors, BTreeMap::from([(front, BTreeSet::from([(ip(2), 8080)]))]));
    assert!(udp_survivors(&diff(&new, &new), &new).is_empty());
}

/// The kernel in miniature: refuses what nftables refuses.
fn apply(state: &Ruleset, changes: &[Change]) -> Result<Ruleset, String> {
    let key = |element: &Element| match element {
        Element::Front(front, _) => format!("{front:?}"),
        Element::Back(group, front, slot, _) => format!("{group} {front:?} {slot}"),
        Element::Alive(front, (ip, _)) => format!("{front:?} {ip}"),
        other => format!("{other:?}"),
    };
    let mut keys: BTreeSet<String> = state.elements.iter().map(key).collect();
    let mut out = state.clone();
    for change in changes {
        match change {
            Change::Remove(element) => {
                keys.remove(&key(element));
                out.elements.remove(element).then_some(()).ok_or("removes what is not there")?;
            }
            Change::Add(element) => {
                keys.insert(key(element)).then_some(()).ok_or("two values under one key")?;
                out.elements.insert(*element);
                if let Element::Front(_, Target::Group(group)) | Element::Back(group, ..) = element {
                    out.groups.contains(group).then_some(()).ok_or("points to no chain")?;
                }
            }
            Change::AddGroup(group) => {
                out.groups.insert(*group).then_some(()).ok_or("chain exists")?;
            }
            Change::RemoveGroup(group) => {
                let used = out.elements.iter().any(|element| matches!(element, Element::Front(_, Target::Group(g)) | Element::Back(g, ..) if g == group));
                (!used && out.groups.remove(group)).then_some(()).ok_or("chain is in use")?;
            }
        }
    }
    Ok(out)
}

prop_compose! {
    fn any_service()(
        number in 1u8..6,
        endpoints in prop::collection::vec((1u8..9, any::<bool>()), 0..5),
        ports in prop::collection::vec(1u16..3, 5),
        node_port in prop::option::of(30000u16..30003),
        external in any::<bool>(),
        udp in any::<bool>(),
        affinity_secs in prop::option::of(1u32..3),
        external_local in any::<bool>(),
        internal_local in any::<bool>(),
    ) -> ServicePort {
        let cluster = Ipv4Addr::new(10, 96, 0, number);
        let mut base = service(&endpoints);
        base.endpoints.iter_mut().zip(ports).for_each(|(endpoint, port)| endpoint.port = port);
        ServicePort {
            cluster_ips: vec![cluster],
            external_ips: if external { vec![ip(200)] } else { vec![] },
            protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
            node_port,
            affinity_secs,
            external_local,
            internal_local,
            ..base
        }
    }
}

proptest! {
    #[test]
    fn diff_leads_from_any_state_to_any_other(
        a in prop::collection::vec(any_service(), 0..6),
        b in prop::collection::vec(any_service(), 0..6),
    ) {
        let (a, b) = (desired(&a, &[], DNS), desired(&b, &[], DNS));
        prop_assert_eq!(apply(&Ruleset::default(), &diff(&Ruleset::default(), &a)), Ok(a.clone()));
        prop_assert_eq!(apply(&a, &diff(&a, &b)), Ok(b.clone()));
        prop_assert!(diff(&b, &b).is_empty());
    }
}
