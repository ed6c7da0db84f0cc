//! Messages of the wire: frames of streams, DNS, etcd's answers.

use crate::{Target, etcd, nodeapi};
use bytes::Bytes;
use dns::{Action, EndpointRecord, PortRecord, ServiceKind, ServiceRecord, Transport, Zone};
use std::net::Ipv4Addr;
use std::sync::LazyLock;

pub const SPDY: Target = Target {
    name: "spdy",
    run: nodeapi::spdy::read_all,
    seeds: nodeapi::spdy::seeds,
    words: &["\u{0}\u{3}\u{0}\u{1}", "streamtype", "error", "stdin", "port", "requestid"],
    writes: false,
};

pub const WEBSOCKET: Target =
    Target { name: "websocket", run: nodeapi::read_all, seeds: nodeapi::seeds, words: &[], writes: false };

static ZONE: LazyLock<Zone> = LazyLock::new(|| {
    let service = |name: &str, kind| ServiceRecord {
        namespace: "default".into(),
        name: name.into(),
        kind,
        ports: vec![PortRecord { name: "http".into(), protocol: "TCP".into(), port: 80 }],
    };
    let endpoint =
        |last| EndpointRecord { ip: Ipv4Addr::new(10, 244, 0, last), hostname: Some(format!("n{last}")) };
    Zone::new(
        "cluster.local",
        Ipv4Addr::new(10, 96, 0, 10),
        &[
            service("web", ServiceKind::ClusterIp(Ipv4Addr::new(10, 96, 0, 5))),
            service("db", ServiceKind::Headless((1..50).map(endpoint).collect())),
            service("ext", ServiceKind::External("example.com".into())),
            service("loop", ServiceKind::External("loop.default.svc.cluster.local".into())),
        ],
    )
});

/// A query for a name, with an OPT record.
fn question(name: &str, kind: u16) -> Vec<u8> {
    let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).expect("a short label"));
        message.extend_from_slice(label.as_bytes());
    }
    message.push(0);
    message.extend_from_slice(&kind.to_be_bytes());
    message.extend_from_slice(&[0, 1]);
    message.extend_from_slice(&[0, 0, 41, 4, 0xd0, 0, 0, 0, 0, 0, 0]);
    message
}

pub const DNS: Target = Target {
    name: "dns",
    run: |input| {
        for (transport, limit) in [(Transport::Udp, 4096), (Transport::Tcp, 65_535)] {
            let reply = match dns::answer(&ZONE, input, transport) {
                Action::Reply(reply) => reply,
                // What was asked about stands in for upstream's answer too.
                Action::Chase(chase) => {
                    let question = chase.question();
                    assert!(chase.finish(None).len() <= limit && question.len() <= 512);
                    chase.finish(Some(input))
                }
                Action::Forward | Action::Ignore => continue,
            };
            assert!(reply.len() <= limit && reply.get(..2) == input.get(..2), "{} bytes", reply.len());
        }
    },
    seeds: || {
        let mut upstream = question("ext.default.svc.cluster.local", 1);
        upstream.extend_from_slice(&[0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 9, 0, 2, 0xc0, 12]);
        upstream.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 1, 2, 3, 4]);
        upstream[7] = 2;
        let names = [
            ("web.default.svc.cluster.local", 1),
            ("_http._tcp.db.default.svc.cluster.local", 33),
            ("db.default.svc.cluster.local", 255),
            ("loop.default.svc.cluster.local", 28),
            ("10.0.96.10.in-addr.arpa", 12),
            ("example.com", 1),
        ];
        let mut all: Vec<_> = names.iter().map(|(name, kind)| question(name, *kind)).collect();
        all.push(upstream);
        all
    },
    words: &[
        "\u{3}web",
        "\u{7}default",
        "\u{3}svc",
        "\u{7}cluster",
        "\u{5}local",
        "\u{4}_tcp",
        "\u{7}in-addr\u{4}arpa",
        "\u{3}pod",
    ],
    writes: false,
};

pub const ETCD: Target = Target {
    name: "etcd",
    run: |input| etcd::read_all(Bytes::copy_from_slice(input)),
    seeds: etcd::seeds,
    words: &["/gantry/main/", "3.5.16"],
    writes: false,
};
