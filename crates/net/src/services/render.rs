//! Services as nftables messages: the sets, the group chains, and changes. Pure.
//!
//! Invariants: changes are rendered in the order given; neighbours of one set share a message.
//! Deliberately not here: base chains (module `base`).

use sys::netlink::{Attrs, Message};

use super::{Change, Element, Front, Group, Target, View};
use crate::nft::expr::{
    self, Reg, daddr, dispatch, dnat, dport, forget, l4proto, look_up, random, remember, saddr, scratch,
    set_scratch,
};
use crate::nft::{Bytes, Field, Holds, Table, Value, Verdict};

/// The chain that refuses.
pub(crate) const REJECT_CHAIN: &str = "refuse";
/// Set of local endpoints, as (source, destination).
pub(crate) const HAIRPIN_SET: &str = "hairpin";
/// Set of endpoints on other nodes.
pub(crate) const REMOTE_SET: &str = "remote";
/// Remembered clients per view. At ~130 bytes each, full is 17 MB; beyond it new clients are balanced
/// without memory.
const AFFINITY_ENTRIES_MAX: u32 = 131_072;

const IP_PROTOCOL_PORT: &[Field] = &[Field::Ip, Field::Protocol, Field::Port];
const IP: &[Field] = &[Field::Ip];
const SOCKET: &[Field] = &[Field::Ip, Field::Port];

/// The fields of a view's fronts.
fn front_fields(view: View) -> &'static [Field] {
    if view.has_address() { IP_PROTOCOL_PORT } else { &IP_PROTOCOL_PORT[1..] }
}

fn key_of(view: View, before: &[Field], after: &[Field]) -> Vec<Field> {
    [before, front_fields(view), after].concat()
}

/// The map from fronts to targets.
pub(crate) fn fronts_map(view: View) -> String {
    format!("f_{}", view.letter())
}

fn backs_map(group: Group) -> String {
    format!("b_{group}")
}

fn clients_map(view: View) -> String {
    format!("a_{}", view.letter())
}

fn alive_map(view: View) -> String {
    format!("l_{}", view.letter())
}

/// The sets that exist whatever the services are.
pub(crate) fn fixed_sets(table: Table<'_>) -> Vec<Message> {
    let mut messages = vec![
        table.add_set(HAIRPIN_SET, &[Field::Ip, Field::Ip], Holds::Nothing),
        table.add_set(REMOTE_SET, IP_PROTOCOL_PORT, Holds::Nothing),
    ];
    for view in View::ALL {
        let clients = Holds::Learned(IP, AFFINITY_ENTRIES_MAX);
        messages.extend([
            table.add_set(&fronts_map(view), front_fields(view), Holds::Verdict),
            table.add_set(&clients_map(view), &key_of(view, IP, &[]), clients),
            table.add_set(&alive_map(view), &key_of(view, &[], IP), Holds::Fields(SOCKET)),
        ]);
    }
    messages
}

/// Loads a front's key into registers from `at`; returns the first register after it.
pub(crate) fn load_front(view: View, at: Reg, out: &mut Vec<Attrs>) -> Reg {
    let mut next = at;
    let mut push = |load: fn(Reg) -> Attrs| {
        out.push(load(next));
        next += 1;
    };
    if view.has_address() {
        push(daddr);
    }
    push(l4proto);
    push(dport);
    next
}

fn group_messages(table: Table<'_>, group: Group) -> Vec<Message> {
    let (chain, map, view) = (group.to_string(), backs_map(group), group.view);
    let holds = Holds::Fields(if group.affinity_secs.is_some() { IP } else { SOCKET });
    let mut messages =
        vec![table.add_set(&map, &key_of(view, &[], &[Field::Number]), holds), table.add_chain(&chain)];
    let Some(secs) = group.affinity_secs else {
        let mut rule = Vec::new();
        let slot = load_front(view, 0, &mut rule);
        rule.extend([random(group.count, slot), look_up(&map, 0, slot + 1), dnat(slot + 1)]);
        messages.push(table.add_rule(&chain, rule));
        return messages;
    };
    messages.extend(affinity_rules(group, secs).into_iter().map(|rule| table.add_rule(&chain, rule)));
    messages
}

/// Affinity in rules that `nft list` can show: it aborts on a rule that stores what it looked up. So the
/// endpoint's address travels in the packet's priority, which forwarding sets anew anyway.
fn affinity_rules(group: Group, secs: u32) -> [Vec<Attrs>; 6] {
    let view = group.view;
    let (clients, alive, timeout_ms) = (clients_map(view), alive_map(view), u64::from(secs) * 1000);
    // Registers: client, front, then what each rule needs.
    let rule = |parts: &dyn Fn(Reg) -> Vec<Attrs>| {
        let mut rule = vec![saddr(0)];
        let next = load_front(view, 1, &mut rule);
        rule.extend(parts(next));
        rule
    };
    // A known client's endpoint.
    let known = rule(&|next| vec![look_up(&clients, 0, next), set_scratch(next)]);
    // If it still lives: remember the client for longer and go there.
    let go = rule(&|next| {
        let (endpoint, socket) = (next, next + 1);
        let remember = remember(&clients, 0, endpoint, timeout_ms);
        vec![scratch(endpoint), look_up(&alive, 1, socket), remember, dnat(socket)]
    });
    // All other clients are balanced.
    let pick = rule(&|slot| {
        let endpoint = slot + 1;
        vec![random(group.count, slot), look_up(&backs_map(group), 1, endpoint), set_scratch(endpoint)]
    });
    // Remembering prolongs an entry but does not change it, so one of a dead endpoint goes first.
    let forget = rule(&|next| vec![scratch(next), forget(&clients, 0, next)]);
    // A full memory must not refuse service.
    let go_unremembered = rule(&|next| vec![scratch(next), look_up(&alive, 1, next + 1), dnat(next + 1)]);
    [known, go.clone(), pick, forget, go, go_unremembered]
}

fn front_key(front: &Front, before: Bytes) -> Bytes {
    let key = match front.ip {
        Some(ip) => before.ip(ip),
        None => before,
    };
    key.protocol(front.protocol.number()).port(front.port)
}

/// The set that an element belongs to, its key and its value.
fn element(element: &Element) -> (String, Bytes, Value) {
    match element {
        Element::Front(front, target) => {
            let verdict = match target {
                Target::Group(group) => Verdict::Goto(group.to_string()),
                Target::Reject => Verdict::Goto(REJECT_CHAIN.into()),
                Target::Drop => Verdict::Drop,
            };
            (fronts_map(front.view), front_key(front, Bytes::default()), Value::Verdict(verdict))
        }
        Element::Back(group, front, slot, (ip, port)) => {
            let key = front_key(front, Bytes::default()).number(*slot);
            let endpoint = Bytes::default().ip(*ip);
            let endpoint = if group.affinity_secs.is_some() { endpoint } else { endpoint.port(*port) };
            (backs_map(*group), key, Value::Bytes(endpoint))
        }
        Element::Alive(front, (ip, port)) => {
            let key = front_key(front, Bytes::default()).ip(*ip);
            (alive_map(front.view), key, Value::Bytes(Bytes::default().ip(*ip).port(*port)))
        }
        Element::Hairpin(ip) => (HAIRPIN_SET.into(), Bytes::default().ip(*ip).ip(*ip), Value::Nothing),
        Element::Remote(protocol, (ip, port)) => {
            let key = Bytes::default().ip(*ip).protocol(protocol.number()).port(*port);
            (REMOTE_SET.into(), key, Value::Nothing)
        }
    }
}

/// Renders changes as the messages of one transaction.
pub(crate) fn changes(table: Table<'_>, changes: &[Change]) -> Vec<Message> {
    let mut messages = Vec::new();
    let mut run: Vec<(Bytes, Value)> = Vec::new();
    let mut run_of = (String::new(), false);
    let flush = |run_of: &(String, bool), run: &mut Vec<_>, messages: &mut Vec<Message>| {
        let (set, add) = run_of;
        messages.extend(if *add { table.add_elements(set, run) } else { table.del_elements(set, run) });
        run.clear();
    };
    for change in changes {
        let (one, add) = match change {
            Change::Add(one) => (one, true),
            Change::Remove(one) => (one, false),
            Change::AddGroup(group) | Change::RemoveGroup(group) => {
                flush(&run_of, &mut run, &mut messages);
                messages.extend(if matches!(change, Change::AddGroup(_)) {
                    group_messages(table, *group)
                } else {
                    let chain = group.to_string();
                    let map = backs_map(*group);
                    vec![table.flush_chain(&chain), table.del_chain(&chain), table.del_set(&map)]
                });
                continue;
            }
        };
        let (set, key, value) = element(one);
        if run_of != (set.clone(), add) {
            flush(&run_of, &mut run, &mut messages);
            run_of = (set, add);
        }
        run.push((key, if add { value } else { Value::Nothing }));
    }
    flush(&run_of, &mut run, &mut messages);
    messages
}

/// The rule that sends a packet to its front's target, if the view knows the front.
pub(crate) fn front_rule(view: View) -> Vec<Attrs> {
    let mut rule = Vec::new();
    if !view.has_address() {
        rule.extend(expr::to_this_host());
    }
    load_front(view, 0, &mut rule);
    rule.push(dispatch(&fronts_map(view), 0));
    rule
}
