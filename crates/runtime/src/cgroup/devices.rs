//! Which devices a container may open: closed by default, some open for everybody, then the configuration's rules.
//! Pure: as writes for v1, as a BPF program for v2.

use super::convert::{Write, write};
use crate::oci::DeviceRule;

/// Open for everybody: making any node, the standard devices, terminals. Type, major, minor, access.
const STANDARD: &[(&str, Option<i64>, Option<i64>, &str)] = &[
    ("c", None, None, "m"),
    ("b", None, None, "m"),
    ("c", Some(1), Some(3), "rwm"),
    ("c", Some(1), Some(5), "rwm"),
    ("c", Some(1), Some(7), "rwm"),
    ("c", Some(1), Some(8), "rwm"),
    ("c", Some(1), Some(9), "rwm"),
    ("c", Some(5), Some(0), "rwm"),
    ("c", Some(5), Some(1), "rwm"),
    ("c", Some(5), Some(2), "rwm"),
    ("c", Some(136), None, "rwm"),
];

fn kind(rule: &DeviceRule) -> &str {
    rule.kind.as_deref().unwrap_or("a")
}

fn access(rule: &DeviceRule) -> &str {
    if rule.access.is_empty() { "rwm" } else { &rule.access }
}

/// All rules in force, in order, on top of "everything is closed"; `None`: everything is open.
pub(super) fn effective(rules: &[DeviceRule]) -> Option<Vec<DeviceRule>> {
    let is_all = |r: &&DeviceRule| kind(r) == "a" && r.major.is_none() && r.minor.is_none();
    if rules.last().filter(is_all).is_some_and(|r| r.allow) {
        return None;
    }
    let standard = STANDARD.iter().map(|&(kind, major, minor, access)| DeviceRule {
        allow: true,
        kind: Some(kind.to_owned()),
        major,
        minor,
        access: access.to_owned(),
    });
    // "Close everything" says nothing new; after the standard devices it would close them as well.
    Some(standard.chain(rules.iter().filter(|r| r.allow || !is_all(r)).cloned()).collect())
}

/// The writes for v1.
pub(super) fn v1(rules: Option<&[DeviceRule]>) -> Vec<Write> {
    let Some(rules) = rules else { return vec![write("devices", "devices.allow", "a")] };
    let number = |n: Option<i64>| n.filter(|&n| n >= 0).map_or_else(|| "*".to_owned(), |n| n.to_string());
    let one = |rule: &DeviceRule| {
        let file = if rule.allow { "devices.allow" } else { "devices.deny" };
        let value = format!("{} {}:{} {}", kind(rule), number(rule.major), number(rule.minor), access(rule));
        write("devices", file, value)
    };
    std::iter::once(write("devices", "devices.deny", "a")).chain(rules.iter().map(one)).collect()
}

// eBPF operations used below.
const LOAD: u8 = 0x61; // dst = *(u32 *)(src + off)
const MOVE: u8 = 0xBF; // dst = src
const SET: u8 = 0xB7; // dst = imm
const AND: u8 = 0x57; // dst &= imm
const SHIFT: u8 = 0x77; // dst >>= imm
const SKIP_IF: u8 = 0x15; // if dst == imm, skip off
const SKIP_UNLESS: u8 = 0x55; // if dst != imm, skip off
const SKIP_UNLESS_SAME: u8 = 0x5D; // if dst != src, skip off
const EXIT: u8 = 0x95;

/// One instruction in the kernel's layout.
fn op(code: u8, dst: u64, src: u64, off: u16, imm: u32) -> u64 {
    u64::from(code) | (dst << 8) | (src << 12) | (u64::from(off) << 16) | (u64::from(imm) << 32)
}

/// The program for v2 (`BPF_PROG_TYPE_CGROUP_DEVICE`): the last rule that fits decides, none: closed.
/// Registers: r2 type, r3 access, r4 major, r5 minor.
pub(super) fn program(rules: &[DeviceRule]) -> Vec<u64> {
    let mut out = vec![
        op(LOAD, 2, 1, 0, 0),
        op(MOVE, 3, 2, 0, 0),
        op(AND, 2, 0, 0, 0xFFFF),
        op(SHIFT, 3, 0, 0, 16),
        op(LOAD, 4, 1, 4, 0),
        op(LOAD, 5, 1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let mut checks = Vec::new();
        match kind(rule) {
            "b" => checks.push((SKIP_UNLESS, 2, 0, 1)),
            "c" => checks.push((SKIP_UNLESS, 2, 0, 2)),
            _ => {}
        }
        let number = |n: Option<i64>| n.and_then(|n| u32::try_from(n).ok());
        checks.extend(number(rule.major).map(|n| (SKIP_UNLESS, 4, 0, n)));
        checks.extend(number(rule.minor).map(|n| (SKIP_UNLESS, 5, 0, n)));
        let bits = [('m', 1), ('r', 2), ('w', 4)];
        let mask = bits.iter().filter(|(c, _)| access(rule).contains(*c)).map(|(_, bit)| bit).sum();
        checks.push((MOVE, 1, 3, 0));
        checks.push((AND, 1, 0, mask));
        // To allow, all that is asked for must be allowed; to deny, one part is enough.
        checks.push(if rule.allow { (SKIP_UNLESS_SAME, 1, 3, 0) } else { (SKIP_IF, 1, 0, 0) });
        let end = checks.len() + 2;
        for (index, (code, dst, src, imm)) in checks.into_iter().enumerate() {
            let jumps = matches!(code, SKIP_IF | SKIP_UNLESS | SKIP_UNLESS_SAME);
            let off = if jumps { u16::try_from(end - index - 1).expect("a rule has few checks") } else { 0 };
            out.push(op(code, dst, src, off, imm));
        }
        out.extend([op(SET, 0, 0, 0, u32::from(rule.allow)), op(EXIT, 0, 0, 0, 0)]);
    }
    out.extend([op(SET, 0, 0, 0, 0), op(EXIT, 0, 0, 0, 0)]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(allow: bool, kind: &str, major: i64, minor: i64, access: &str) -> DeviceRule {
        let some = |n: i64| Some(n).filter(|n| *n >= 0);
        DeviceRule {
            allow,
            kind: Some(kind.into()),
            major: some(major),
            minor: some(minor),
            access: access.into(),
        }
    }

    /// The kernel's interpreter, for the operations used here.
    fn run(program: &[u64], kind: u64, access: u64, major: u64, minor: u64) -> bool {
        let mut r = [0_u64; 6];
        let mut pc = 0;
        loop {
            let i = program[pc];
            pc += 1;
            let (code, dst, src) = (i as u8, (i >> 8) as usize & 15, (i >> 12) as usize & 15);
            let (off, imm) = ((i >> 16) as usize & 0xFFFF, i >> 32);
            let mut skip = |yes: bool| pc += if yes { off } else { 0 };
            match code {
                LOAD => r[dst] = [kind | (access << 16), major, minor][off / 4],
                MOVE => r[dst] = r[src],
                SET => r[dst] = imm,
                AND => r[dst] &= imm,
                SHIFT => r[dst] >>= imm,
                SKIP_IF => skip(r[dst] == imm),
                SKIP_UNLESS => skip(r[dst] != imm),
                SKIP_UNLESS_SAME => skip(r[dst] != r[src]),
                EXIT => return r[0] == 1,
                other => panic!("operation {other:#x}"),
            }
        }
    }

    #[test]
    fn closed_but_for_the_standard_ones_and_what_is_asked_for() {
        let deny_all = rule(false, "a", -1, -1, "rwm");
        let rules =
            effective(&[deny_all, rule(true, "c", 10, 232, "rw"), rule(false, "c", 1, 3, "w")]).unwrap();
        let program = program(&rules);
        let (block, char) = (1, 2);
        let (make, read, write) = (1, 2, 4);
        for (kind, access, major, minor, open) in [
            (char, read | write, 1, 5, true),
            (char, make, 7, 7, true),
            (block, make, 8, 0, true),
            (block, read, 8, 0, false),
            (char, read, 10, 232, true),
            (char, read | make, 10, 232, false),
            (char, read, 10, 231, false),
            (char, read, 136, 42, true),
            (char, read, 1, 3, true),
            (char, read | write, 1, 3, false),
        ] {
            assert_eq!(run(&program, kind, access, major, minor), open, "{kind} {access} {major}:{minor}");
        }
    }

    #[test]
    fn privileged_opens_all() {
        let rules = [rule(false, "a", -1, -1, "rwm"), rule(true, "a", -1, -1, "rwm")];
        assert_eq!(effective(&rules), None);
        assert_eq!(v1(None)[0].value, "a");
    }

    #[test]
    fn v1_starts_closed() {
        let writes = v1(effective(&[rule(true, "c", 10, 232, "rw")]).as_deref());
        assert_eq!((writes[0].file.as_str(), writes[0].value.as_str()), ("devices.deny", "a"));
        assert_eq!(writes.last().unwrap().value, "c 10:232 rw");
    }
}
