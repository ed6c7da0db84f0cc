//! Tests of the answer function: replies shown as text, properties on hostile bytes.

use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::message::{TYPE_ANY, TYPE_NS, TYPE_OPT, TYPE_PTR, TYPE_SOA, TYPE_SRV, TYPE_TXT, be16};
use crate::zone::{EndpointRecord, ExtraRecord, ExtraZone, PortRecord, ServiceKind, ServiceRecord};

fn port(name: &str, protocol: &str, port: u16) -> PortRecord {
    PortRecord { name: name.into(), protocol: protocol.into(), port }
}

fn zone() -> Zone {
    let service = |name: &str, kind, ports| ServiceRecord {
        namespace: "default".into(),
        name: name.into(),
        kind,
        ports,
    };
    let endpoint = |last, hostname: Option<&str>| EndpointRecord {
        ip: Ipv4Addr::new(10, 244, 0, last),
        hostname: hostname.map(Into::into),
    };
    let external = |target: &str| ServiceKind::External(target.into());
    let many = (1..=100)
        .map(|last| EndpointRecord { ip: Ipv4Addr::new(10, 244, 1, last), hostname: None })
        .collect();
    Zone::new(
        "cluster.local",
        Ipv4Addr::new(10, 96, 0, 10),
        &[
            service(
                "web",
                ServiceKind::ClusterIp(Ipv4Addr::new(10, 96, 0, 5)),
                vec![port("http", "TCP", 80), port("", "UDP", 81)],
            ),
            service(
                "db",
                ServiceKind::Headless(vec![endpoint(7, Some("db-0")), endpoint(8, None)]),
                vec![port("sql", "TCP", 5432)],
            ),
            service("empty", ServiceKind::Headless(vec![]), vec![]),
            service("many", ServiceKind::Headless(many), vec![]),
            service("ext", external("example.com"), vec![]),
            service("near", external("web.default.svc.cluster.local."), vec![]),
            service("loop", external("loop.default.svc.cluster.local"), vec![]),
            service("bad..name", ServiceKind::ClusterIp(Ipv4Addr::LOCALHOST), vec![]),
        ],
    )
}

fn query(name: &str, kind: u16) -> Vec<u8> {
    let mut message = write_question(&Name::parse(name).unwrap(), kind);
    // The case as typed, and an id.
    let mut at = 13;
    for label in name.split('.') {
        message[at..at + label.len()].copy_from_slice(label.as_bytes());
        at += label.len() + 1;
    }
    message[1] = 100;
    message
}

fn show_data(message: &[u8], record: &crate::message::Record) -> String {
    let bytes = &message[record.data.clone()];
    let name_at = |skip: usize| Name::read(message, &mut (record.data.start + skip)).unwrap();
    match record.kind {
        TYPE_A => format!("A {}", Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3])),
        TYPE_CNAME => format!("CNAME {}", name_at(0)),
        TYPE_NS => format!("NS {}", name_at(0)),
        TYPE_PTR => format!("PTR {}", name_at(0)),
        TYPE_SRV => format!("SRV {} {}", be16(bytes, 4).unwrap(), name_at(6)),
        TYPE_SOA => format!("SOA {}", name_at(0)),
        TYPE_TXT => format!("TXT {}", String::from_utf8_lossy(&bytes[1..])),
        TYPE_OPT => format!("OPT {}", record.class),
        other => format!("TYPE{other} {bytes:?}"),
    }
}

fn show(message: &[u8]) -> Vec<String> {
    let reply = Reply::read(message).unwrap();
    let code = ["ok", "format error", "failure", "no such name", "not implemented"][usize::from(reply.code)];
    let mut lines = vec![format!("{code}{}", if reply.truncated { ", cut" } else { "" })];
    for (mark, section) in
        [("", &reply.answers), ("authority ", &reply.authority), ("extra ", &reply.additional)]
    {
        lines.extend(
            section.iter().map(|record| format!("{mark}{} {}", record.owner, show_data(message, record))),
        );
    }
    lines
}

#[track_caller]
fn check(name: &str, kind: u16, expect: &[&str]) {
    let Action::Reply(reply) = answer(&zone(), &query(name, kind), Transport::Udp) else {
        panic!("no reply")
    };
    assert_eq!(show(&reply), expect, "{name}");
    assert_eq!(
        (reply[1], be16(&reply, 2).unwrap() & 0x8580),
        (100, 0x8580),
        "id, reply, authoritative, recursion"
    );
}

const SOA: &str = "authority cluster.local. SOA ns.dns.cluster.local.";

#[test]
fn services_by_name() {
    check("web.default.svc.cluster.local", TYPE_A, &["ok", "web.default.svc.cluster.local. A 10.96.0.5"]);
    check("web.default.svc.cluster.local", TYPE_AAAA, &["ok", SOA]);
    check("nope.default.svc.cluster.local", TYPE_A, &["no such name", SOA]);
    check("nope.default.svc.cluster.local", TYPE_AAAA, &["no such name", SOA]);
    check("example.com.default.svc.cluster.local", TYPE_A, &["no such name", SOA]);
    for parent in [
        "svc.cluster.local",
        "default.svc.cluster.local",
        "_tcp.web.default.svc.cluster.local",
        "cluster.local",
        "pod.cluster.local",
    ] {
        check(parent, TYPE_A, &["ok", SOA]);
    }
}

#[test]
fn headless_services_list_their_endpoints() {
    let name = "db.default.svc.cluster.local";
    check(name, TYPE_A, &["ok", &format!("{name}. A 10.244.0.7"), &format!("{name}. A 10.244.0.8")]);
    check(&format!("db-0.{name}"), TYPE_A, &["ok", &format!("db-0.{name}. A 10.244.0.7")]);
    check(&format!("10-244-0-8.{name}"), TYPE_A, &["ok", &format!("10-244-0-8.{name}. A 10.244.0.8")]);
    check("empty.default.svc.cluster.local", TYPE_A, &["ok", SOA]);
}

#[test]
fn ports_by_service_record() {
    check(
        "_http._tcp.web.default.svc.cluster.local",
        TYPE_SRV,
        &[
            "ok",
            "_http._tcp.web.default.svc.cluster.local. SRV 80 web.default.svc.cluster.local.",
            "extra web.default.svc.cluster.local. A 10.96.0.5",
        ],
    );
    check(
        "_sql._tcp.db.default.svc.cluster.local",
        TYPE_SRV,
        &[
            "ok",
            "_sql._tcp.db.default.svc.cluster.local. SRV 5432 db-0.db.default.svc.cluster.local.",
            "_sql._tcp.db.default.svc.cluster.local. SRV 5432 10-244-0-8.db.default.svc.cluster.local.",
            "extra db-0.db.default.svc.cluster.local. A 10.244.0.7",
            "extra 10-244-0-8.db.default.svc.cluster.local. A 10.244.0.8",
        ],
    );
    check("_http._udp.web.default.svc.cluster.local", TYPE_SRV, &["no such name", SOA]);
}

#[test]
fn pods_reverse_names_and_the_version() {
    check(
        "10-244-1-2.default.pod.cluster.local",
        TYPE_A,
        &["ok", "10-244-1-2.default.pod.cluster.local. A 10.244.1.2"],
    );
    check("10-244-1-2.default.pod.cluster.local", TYPE_AAAA, &["ok", SOA]);
    check("10-244-1.default.pod.cluster.local", TYPE_A, &["no such name", SOA]);
    check("x.10-244-1-2.default.pod.cluster.local", TYPE_A, &["no such name", SOA]);
    check(
        "5.0.96.10.in-addr.arpa",
        TYPE_PTR,
        &["ok", "5.0.96.10.in-addr.arpa. PTR web.default.svc.cluster.local."],
    );
    check(
        "7.0.244.10.in-addr.arpa",
        TYPE_PTR,
        &["ok", "7.0.244.10.in-addr.arpa. PTR db-0.db.default.svc.cluster.local."],
    );
    check("dns-version.cluster.local", TYPE_TXT, &["ok", "dns-version.cluster.local. TXT 1.1.0"]);
    check(
        "cluster.local",
        TYPE_ANY,
        &["ok", "cluster.local. SOA ns.dns.cluster.local.", "cluster.local. NS ns.dns.cluster.local."],
    );
    for foreign in ["example.com", "local", "1.1.96.10.in-addr.arpa", "cluster.local.example.com"] {
        assert_eq!(answer(&zone(), &query(foreign, TYPE_A), Transport::Udp), Action::Forward, "{foreign}");
    }
}

#[test]
fn aliases_are_followed_inside_and_chased_outside() {
    check(
        "near.default.svc.cluster.local",
        TYPE_A,
        &[
            "ok",
            "near.default.svc.cluster.local. CNAME web.default.svc.cluster.local.",
            "web.default.svc.cluster.local. A 10.96.0.5",
        ],
    );
    check(
        "ext.default.svc.cluster.local",
        TYPE_CNAME,
        &["ok", "ext.default.svc.cluster.local. CNAME example.com."],
    );
    check("loop.default.svc.cluster.local", TYPE_A, &["failure"]);
    let Action::Chase(chase) =
        answer(&zone(), &query("ext.default.svc.cluster.local", TYPE_A), Transport::Udp)
    else {
        panic!("not chased")
    };
    let question = Query::read(&chase.question()).unwrap();
    assert_eq!((question.name.to_string().as_str(), question.kind), ("example.com.", TYPE_A));
    let upstream = Query { edns: None, ..question.clone() };
    let records = [Data::Cname(Name::parse("cdn.example.net").unwrap())];
    let mut answers: Vec<Answer> =
        records.map(|data| Answer { owner: question.name.clone(), ttl: 60, data }).into();
    answers.push(Answer {
        owner: Name::parse("cdn.example.net").unwrap(),
        ttl: 60,
        data: Data::A(Ipv4Addr::new(192, 0, 2, 1)),
    });
    let upstream = write_reply(&upstream, Code::NoError, &Sections { answers, ..Sections::default() }, 512);
    assert_eq!(
        show(&chase.finish(Some(&upstream))),
        [
            "ok",
            "ext.default.svc.cluster.local. CNAME example.com.",
            "example.com. CNAME cdn.example.net.",
            "cdn.example.net. A 192.0.2.1"
        ]
    );
    assert_eq!(show(&chase.finish(None)), ["failure"]);
    assert_eq!(show(&chase.finish(Some(b"junk"))), ["failure"]);
}

#[test]
fn long_answers_are_cut_for_datagrams_only() {
    let message = query("many.default.svc.cluster.local", TYPE_A);
    let Action::Reply(udp) = answer(&zone(), &message, Transport::Udp) else { panic!() };
    assert!(udp.len() <= 512 && show(&udp)[0] == "ok, cut");
    let Action::Reply(tcp) = answer(&zone(), &message, Transport::Tcp) else { panic!() };
    assert_eq!((show(&tcp)[0].as_str(), show(&tcp).len()), ("ok", 101));
    // EDNS: more room, and an answer in kind.
    let mut edns = message.clone();
    edns[11] = 1;
    edns.extend_from_slice(&[0, 0, 41, 0x10, 0, 0, 0, 0, 0, 0, 0]);
    let Action::Reply(udp) = answer(&zone(), &edns, Transport::Udp) else { panic!() };
    assert!(udp.len() > 1000 && udp.len() <= 1232, "{}", udp.len());
    assert!(show(&udp).contains(&"extra . OPT 1232".to_owned()));
}

#[test]
fn case_is_kept_and_answers_rotate() {
    let mut message = query("WeB.dEfault.svc.CLUSTER.local", TYPE_A);
    let Action::Reply(reply) = answer(&zone(), &message, Transport::Udp) else { panic!() };
    assert_eq!(reply[12..message.len()], message[12..]);
    assert_eq!(show(&reply).len(), 2);
    message = query("db.default.svc.cluster.local", TYPE_A);
    message[1] = 101;
    let Action::Reply(reply) = answer(&zone(), &message, Transport::Udp) else { panic!() };
    assert!(show(&reply)[1].ends_with("10.244.0.8"));
}

#[test]
fn odd_queries_get_their_code() {
    let code = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut message = query("web.default.svc.cluster.local", TYPE_A);
        change(&mut message);
        match answer(&zone(), &message, Transport::Udp) {
            Action::Reply(reply) => i32::from(reply[3] & 0xf),
            Action::Ignore => -1,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(code(&|_| {}), 0);
    assert_eq!(code(&|m| m[2] |= 0x80), -1, "a reply");
    assert_eq!(code(&|m| m.truncate(11)), -1, "too short");
    assert_eq!(code(&|m| m[2] |= 0x28), 4, "an update");
    assert_eq!(code(&|m| m[5] = 2), 1, "two questions");
    assert_eq!(code(&|m| m.truncate(20)), 1, "half a question");
    assert_eq!(code(&|m| m[11] = 1), 1, "a missing record");
    let class_at = query("web.default.svc.cluster.local", TYPE_A).len() - 1;
    assert_eq!(code(&|m| m[class_at] = 3), 4, "class CHAOS");
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..700)) {
        survive(&bytes)?;
    }

    #[test]
    fn damaged_queries_are_survived(
        name in prop::sample::select(vec!["many.default.svc.cluster.local", "ext.default.svc.cluster.local", "a.b"]),
        kind in prop::sample::select(vec![TYPE_A, TYPE_SRV, TYPE_ANY, TYPE_OPT]),
        hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        tail in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut message = query(name, kind);
        message.extend(tail);
        for (index, byte) in hits {
            let at = index.index(message.len());
            message[at] = byte;
        }
        survive(&message)?;
    }
}

fn survive(message: &[u8]) -> Result<(), TestCaseError> {
    for (transport, limit) in [(Transport::Udp, 1232), (Transport::Tcp, 65_535)] {
        match answer(&zone(), message, transport) {
            Action::Reply(reply) => {
                prop_assert!(reply.len() <= limit && reply[..2] == message[..2] && reply[2] & 0x80 != 0);
                let refusal = be16(&reply, 4) == Some(0);
                prop_assert!(refusal || Reply::read(&reply).is_some());
            }
            Action::Chase(chase) => {
                prop_assert!(Reply::read(&chase.finish(Some(message))).is_some());
            }
            Action::Forward | Action::Ignore => {}
        }
    }
    Ok(())
}

#[test]
fn zones_beside_the_clusters_are_ours() {
    let a = |last| ExtraRecord::A(Ipv4Addr::new(10, 244, 0, last));
    let extra = |domain: &str, records: &[(&str, ExtraRecord)]| ExtraZone {
        domain: domain.into(),
        records: records.iter().map(|(name, r)| (name.to_string(), r.clone())).collect(),
    };
    let prod = extra(
        "prod.local",
        &[
            ("web.prod.local", a(1)),
            ("web.prod.local", a(2)),
            ("api.prod.local", ExtraRecord::Srv(8080, "i-1.api.prod.local".into())),
            ("i-1.api.prod.local", a(3)),
            ("www.prod.local", ExtraRecord::Cname("web.prod.local".into())),
            ("elsewhere.local", a(9)),
        ],
    );
    let zone = zone().with(&[prod, extra("cluster.local", &[]), extra("bad..name", &[])]);
    let found = |name: &str, kind| match zone.look_up(&Name::parse(name).unwrap(), kind) {
        Lookup::Found(records) => records.len(),
        _ => 0,
    };
    assert_eq!((found("web.prod.local", TYPE_A), found("api.prod.local", TYPE_SRV)), (2, 1));
    assert_eq!((found("prod.local", TYPE_SOA), found("cluster.local", TYPE_SOA)), (1, 1));
    let look = |name: &str| zone.look_up(&Name::parse(name).unwrap(), TYPE_A);
    assert_eq!(look("nope.prod.local"), Lookup::NoName);
    assert_eq!(look("elsewhere.local"), Lookup::NotOurs);
    assert_eq!(look("www.prod.local"), Lookup::Alias(Name::parse("web.prod.local").unwrap()));
    assert_eq!(
        zone.authority(&Name::parse("nope.prod.local").unwrap()).0,
        Name::parse("prod.local").unwrap()
    );
    let Action::Reply(reply) = answer(&zone, &query("nope.prod.local", TYPE_A), Transport::Udp) else {
        panic!()
    };
    assert_eq!(reply[3] & 0xf, 3, "no such name, told by us");
}
