//! The fixed part of our table: base chains and their rules. Pure.
//!
//! Invariants: one table; nothing here matches traffic that is neither a pod's nor for a service of ours.
//! Deliberately not here: services' elements (module `services`), network policy (will be its own chains).

use sys::netlink::{Attrs, Message};

use crate::addr::Ipv4Net;
use crate::nft::expr::{self, Test};
use crate::nft::{Hook, Table, Verdict};
use crate::node::NetConfig;
use crate::services::View;
use crate::services::render::{self, HAIRPIN_SET, REJECT_CHAIN, REMOTE_SET};
use crate::tunnel;

const PRIORITY_RAW: i32 = -300;
const PRIORITY_DNAT: i32 = -100;
const PRIORITY_SNAT: i32 = 100;
const SERVICES_CHAIN: &str = "services";
const OUTSIDE_CHAIN: &str = "outside";
const GUARD_CHAIN: &str = "guard";
const PREROUTING_CHAIN: &str = "nat_prerouting";
const OUTPUT_CHAIN: &str = "nat_output";
const POSTROUTING_CHAIN: &str = "nat_postrouting";
const TCP: u8 = 6;

fn loopback() -> Ipv4Net {
    Ipv4Net::new(std::net::Ipv4Addr::LOCALHOST, 8)
}

fn rule(parts: &[&[Attrs]]) -> Vec<Attrs> {
    parts.concat()
}

fn then(verdict: Verdict) -> [Attrs; 1] {
    [expr::verdict(&verdict)]
}

/// Makes the table, its fixed sets, chains and rules, with no service in it.
pub(crate) fn messages(config: &NetConfig, comment: &str) -> Vec<Message> {
    let table = Table(&config.prefix);
    let mut messages = vec![table.add(comment)];
    messages.extend([
        table.add_chain(REJECT_CHAIN),
        table.add_chain(SERVICES_CHAIN),
        table.add_chain(OUTSIDE_CHAIN),
        table.add_base_chain(GUARD_CHAIN, "filter", Hook::Prerouting, PRIORITY_RAW),
        table.add_base_chain(PREROUTING_CHAIN, "nat", Hook::Prerouting, PRIORITY_DNAT),
        table.add_base_chain(OUTPUT_CHAIN, "nat", Hook::Output, PRIORITY_DNAT),
        table.add_base_chain(POSTROUTING_CHAIN, "nat", Hook::Postrouting, PRIORITY_SNAT),
    ]);
    messages.extend(render::fixed_sets(table));
    for (chain, rules) in [
        (REJECT_CHAIN, reject_rules()),
        (GUARD_CHAIN, guard_rules(config)),
        (
            OUTSIDE_CHAIN,
            vec![render::front_rule(View::AddressOutside), render::front_rule(View::NodeOutside)],
        ),
        (SERVICES_CHAIN, services_rules(config)),
        (PREROUTING_CHAIN, prerouting_rules(config)),
        (OUTPUT_CHAIN, vec![then(Verdict::Jump(SERVICES_CHAIN.into())).to_vec()]),
        (POSTROUTING_CHAIN, postrouting_rules(config)),
    ] {
        messages.extend(rules.into_iter().map(|rule| table.add_rule(chain, rule)));
    }
    messages
}

fn reject_rules() -> Vec<Vec<Attrs>> {
    vec![rule(&[&expr::is_protocol(TCP), &[expr::reject_with_reset()]]), vec![expr::reject()]]
}

/// What a pod may send at all: nothing to 127.0.0.0/8 (node ports there make it routable), nothing with an
/// address that is not routed to its own link. The route is the one record of who owns an address.
fn guard_rules(config: &NetConfig) -> Vec<Vec<Attrs>> {
    let from_pod = expr::came_in_by(Test::Is, &config.prefix);
    vec![
        rule(&[&from_pod, &expr::to_range(Test::Is, loopback()), &then(Verdict::Drop)]),
        rule(&[&from_pod, &expr::source_is_foreign_to_link(), &then(Verdict::Drop)]),
    ]
}

/// Fronts first; what is left for the service range has no service. The node's own DNS address is not left.
fn services_rules(config: &NetConfig) -> Vec<Vec<Attrs>> {
    let dns = expr::to_range(Test::Is, Ipv4Net::host(config.dns_ip));
    let range = expr::to_range(Test::Is, config.service_cidr);
    vec![
        render::front_rule(View::Address),
        render::front_rule(View::Node),
        rule(&[&dns, &then(Verdict::Return)]),
        rule(&[&range, &then(Verdict::Goto(REJECT_CHAIN.into()))]),
    ]
}

fn prerouting_rules(config: &NetConfig) -> Vec<Vec<Attrs>> {
    let outside = expr::came_in_by(Test::IsNot, &config.prefix);
    vec![
        rule(&[&outside, &then(Verdict::Jump(OUTSIDE_CHAIN.into()))]),
        then(Verdict::Jump(SERVICES_CHAIN.into())).to_vec(),
    ]
}

/// Who gets another source address: a pod that reaches itself through a service, the node's 127.0.0.1 on its
/// way to a pod, strangers whom we sent to another node (by the tunnel or past it), and pods on their way out of the
/// cluster.
fn postrouting_rules(config: &NetConfig) -> Vec<Vec<Attrs>> {
    let to_pod = expr::goes_out_by(Test::Is, &config.prefix);
    let to_elsewhere = rule(&[
        &expr::goes_out_by(Test::IsNot, &config.prefix),
        &expr::goes_out_by_exactly(Test::IsNot, "lo"),
    ]);
    let masquerade = [expr::masquerade()];
    let snat = expr::snat(config.node_ip);
    let hairpin = [expr::saddr(0), expr::daddr(1), expr::in_set(HAIRPIN_SET, 0)];
    let remote = [expr::daddr(0), expr::l4proto(1), expr::dport(2), expr::in_set(REMOTE_SET, 0)];
    let pods = config.pod_cidr;
    // The far end knows the tunnel's own address and pods, and drops the rest as forged.
    let by_tunnel = rule(&[
        &expr::goes_out_by_exactly(Test::Is, &tunnel::link_name(&config.prefix)),
        &expr::from_range(Test::IsNot, config.cluster_cidr),
    ]);
    vec![
        rule(&[&by_tunnel, &masquerade]),
        rule(&[&to_pod, &hairpin, &snat]),
        rule(&[&to_pod, &expr::from_range(Test::Is, loopback()), &snat]),
        rule(&[
            &to_elsewhere,
            &expr::was_dnatted(),
            &expr::from_range(Test::IsNot, pods),
            &remote,
            &masquerade,
        ]),
        rule(&[
            &to_elsewhere,
            &expr::from_range(Test::Is, pods),
            &expr::to_range(Test::IsNot, config.cluster_cidr),
            &masquerade,
        ]),
    ]
}
