//! Seccomp profiles → BPF programs. Pure.
//!
//! One program for all actions: architecture check, then a binary search over ranges of call numbers with the
//! same outcome, then argument checks where a rule has them. Rules of one call are tried in the profile's order;
//! one without conditions ends them. (A filter a rule, or a linear list, costs each system call ten times more.)

use super::Failure;
use crate::oci::seccomp::{Arg, Seccomp};
use std::collections::BTreeMap;
use sys::seccomp::{AUDIT_ARCH, Instruction, number};

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// Offsets in `struct seccomp_data`.
const NUMBER_AT: u32 = 0;
const ARCH_AT: u32 = 4;
const ARGS_AT: u32 = 16;
/// The kernel's limit on a program's length.
const LENGTH_MAX: usize = 4096;
/// Calls of the x32 interface carry this bit; nobody uses it, so it looks like an older kernel.
const X32_BIT: u32 = 0x4000_0000;

const KILL_PROCESS: u32 = 0x8000_0000;
const ERRNO: u32 = 0x0005_0000;
const ENOSYS: u32 = 38;
const EPERM: u32 = 1;

fn code(action: &str, errno: Option<u32>) -> Result<u32, Failure> {
    let errno = errno.unwrap_or(EPERM) & 0xFFFF;
    Ok(match action {
        "SCMP_ACT_ALLOW" => 0x7FFF_0000,
        "SCMP_ACT_ERRNO" => ERRNO | errno,
        "SCMP_ACT_KILL_PROCESS" => KILL_PROCESS,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => 0,
        "SCMP_ACT_TRAP" => 0x0003_0000 | errno,
        "SCMP_ACT_TRACE" => 0x7FF0_0000 | errno,
        "SCMP_ACT_LOG" => 0x7FFC_0000,
        other => return Err(Failure::new("seccomp action", format!("{other} is not supported"))),
    })
}

/// What happens to one call: conditional actions in order, then the last.
#[derive(Clone, Debug, PartialEq)]
struct Outcome {
    conditional: Vec<(Vec<Arg>, u32)>,
    last: u32,
}

/// The program of a profile; `None` when it allows everything.
pub(super) fn compile(profile: &Seccomp) -> Result<Option<Vec<Instruction>>, Failure> {
    let default = code(&profile.default_action, profile.default_errno_ret)?;
    let plain = Outcome { conditional: vec![], last: default };
    let mut outcomes: BTreeMap<u32, (Outcome, bool)> = BTreeMap::new();
    for rule in &profile.syscalls {
        let action = code(&rule.action, rule.errno_ret)?;
        // Names of other machines or newer kernels mean nothing here.
        for number in rule.names.iter().filter_map(|name| number(name)) {
            let (outcome, closed) = outcomes.entry(number).or_insert_with(|| (plain.clone(), false));
            if *closed {
                continue;
            }
            if rule.args.is_empty() {
                (outcome.last, *closed) = (action, true);
            } else {
                outcome.conditional.push((rule.args.clone(), action));
            }
        }
    }
    if outcomes.values().all(|(o, _)| *o == plain) && default == code("SCMP_ACT_ALLOW", None)? {
        return Ok(None);
    }
    let mut program = vec![
        instruction(LOAD, 0, 0, ARCH_AT),
        instruction(EQUAL, 1, 0, AUDIT_ARCH),
        instruction(RETURN, 0, 0, KILL_PROCESS),
        instruction(LOAD, 0, 0, NUMBER_AT),
    ];
    if cfg!(target_arch = "x86_64") {
        program.push(instruction(AT_LEAST, 0, 1, X32_BIT));
        program.push(instruction(RETURN, 0, 0, ERRNO | ENOSYS));
    }
    search(&ranges(&outcomes, &plain), &mut program);
    if program.len() > LENGTH_MAX {
        return Err(Failure::new("seccomp profile", "too long"));
    }
    Ok(Some(program))
}

/// Starts of ranges with equal outcome, ascending, the first at 0.
fn ranges(outcomes: &BTreeMap<u32, (Outcome, bool)>, plain: &Outcome) -> Vec<(u32, Outcome)> {
    let mut ranges = vec![(0, plain.clone())];
    let mut add = |start: u32, outcome: &Outcome| match ranges.last_mut() {
        Some((_, last)) if last == outcome => {}
        Some((at, last)) if *at == start => *last = outcome.clone(),
        _ => ranges.push((start, outcome.clone())),
    };
    for (number, (outcome, _)) in outcomes {
        add(*number, outcome);
        if !outcomes.contains_key(&(number + 1)) {
            add(number + 1, plain);
        }
    }
    ranges
}

fn instruction(code: u16, jump_true: u8, jump_false: u8, k: u32) -> Instruction {
    Instruction { code, jump_true, jump_false, k }
}

/// Emits the search over `ranges`; the call's number is in the accumulator.
fn search(ranges: &[(u32, Outcome)], program: &mut Vec<Instruction>) {
    if let [(_, outcome)] = ranges {
        return emit(outcome, program);
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    // Conditional jumps reach 255 instructions, the unconditional one everywhere.
    program.push(instruction(AT_LEAST, 0, 1, high[0].0));
    let jump = program.len();
    program.push(instruction(JUMP, 0, 0, 0));
    search(low, program);
    program[jump].k = distance(jump, program.len());
    search(high, program);
}

fn distance(from: usize, to: usize) -> u32 {
    u32::try_from(to - from - 1).expect("programs have at most 4,096 instructions")
}

fn emit(outcome: &Outcome, program: &mut Vec<Instruction>) {
    for (conditions, action) in &outcome.conditional {
        let mut fails = Vec::new();
        for condition in conditions {
            compare(condition, program, &mut fails);
        }
        program.push(instruction(RETURN, 0, 0, *action));
        let end = program.len();
        for fail in fails {
            program[fail].k = distance(fail, end);
        }
    }
    program.push(instruction(RETURN, 0, 0, outcome.last));
}

/// Emits one comparison: falls through when it holds, else reaches one of `fails` (unconditional jumps).
/// Arguments are 64 bits wide, BPF words 32: high half first.
fn compare(arg: &Arg, program: &mut Vec<Instruction>, fails: &mut Vec<usize>) {
    let (index, value, two, op) = (arg.index, arg.value, arg.value_two, arg.op.as_str());
    let at = ARGS_AT + 8 * index;
    let half = |v: u64, high: bool| u32::try_from(if high { v >> 32 } else { v & 0xFFFF_FFFF }).unwrap_or(0);
    let mut fail = |program: &mut Vec<Instruction>| {
        fails.push(program.len());
        program.push(instruction(JUMP, 0, 0, 0));
    };
    match op {
        "SCMP_CMP_EQ" | "SCMP_CMP_MASKED_EQ" => {
            let (mask, want) = if op == "SCMP_CMP_EQ" { (u64::MAX, value) } else { (value, two) };
            for (offset, high) in [(4, true), (0, false)] {
                program.push(instruction(LOAD, 0, 0, at + offset));
                if mask != u64::MAX {
                    program.push(instruction(AND, 0, 0, half(mask, high)));
                }
                program.push(instruction(EQUAL, 1, 0, half(want, high)));
                fail(program);
            }
        }
        "SCMP_CMP_NE" => {
            program.push(instruction(LOAD, 0, 0, at + 4));
            program.push(instruction(EQUAL, 0, 3, half(value, true)));
            program.push(instruction(LOAD, 0, 0, at));
            program.push(instruction(EQUAL, 0, 1, half(value, false)));
            fail(program);
        }
        // a < b is not a >= b; a <= b is not a > b.
        "SCMP_CMP_GT" | "SCMP_CMP_GE" | "SCMP_CMP_LT" | "SCMP_CMP_LE" => {
            let low = if matches!(op, "SCMP_CMP_GE" | "SCMP_CMP_LT") { AT_LEAST } else { GREATER };
            let wanted = matches!(op, "SCMP_CMP_GT" | "SCMP_CMP_GE");
            // high > → true; high ≠ → false; then the low half decides.
            program.push(instruction(LOAD, 0, 0, at + 4));
            let (holds, not) = if wanted { (4, 3) } else { (3, 4) };
            program.push(instruction(GREATER, holds, 0, half(value, true)));
            program.push(instruction(EQUAL, 0, not - 1, half(value, true)));
            program.push(instruction(LOAD, 0, 0, at));
            let (when_true, when_false) = if wanted { (1, 0) } else { (0, 1) };
            program.push(instruction(low, when_true, when_false, half(value, false)));
            fail(program);
        }
        _ => fail(program), // An unknown comparison never holds.
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::DEFAULT_CAPABILITIES;
    use crate::oci::seccomp::{Rule, runtime_default};
    use proptest::prelude::*;

    const ALLOW: u32 = 0x7FFF_0000;

    /// The kernel's interpreter, for the instructions used here.
    fn execute(program: &[Instruction], arch: u32, call: u32, args: [u64; 6]) -> u32 {
        let word = |at: u32| match at {
            NUMBER_AT => call,
            ARCH_AT => arch,
            _ => {
                let (index, high) = ((at - ARGS_AT) / 8, (at - ARGS_AT) % 8 == 4);
                (args[index as usize] >> if high { 32 } else { 0 }) as u32
            }
        };
        let (mut pc, mut a) = (0, 0_u32);
        loop {
            let i = program[pc];
            pc += 1;
            let mut branch = |yes: bool| pc += usize::from(if yes { i.jump_true } else { i.jump_false });
            match i.code {
                LOAD => a = word(i.k),
                AND => a &= i.k,
                JUMP => pc += i.k as usize,
                EQUAL => branch(a == i.k),
                GREATER => branch(a > i.k),
                AT_LEAST => branch(a >= i.k),
                RETURN => return i.k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    /// The profile read naively.
    fn twin(profile: &Seccomp, call: u32, args: [u64; 6]) -> u32 {
        for rule in &profile.syscalls {
            if !rule.names.iter().any(|n| number(n) == Some(call)) {
                continue;
            }
            let holds = |c: &Arg| {
                let a = args[c.index as usize];
                match c.op.as_str() {
                    "SCMP_CMP_EQ" => a == c.value,
                    "SCMP_CMP_NE" => a != c.value,
                    "SCMP_CMP_LT" => a < c.value,
                    "SCMP_CMP_LE" => a <= c.value,
                    "SCMP_CMP_GT" => a > c.value,
                    "SCMP_CMP_GE" => a >= c.value,
                    _ => a & c.value == c.value_two,
                }
            };
            if rule.args.iter().all(holds) {
                return code(&rule.action, rule.errno_ret).unwrap();
            }
        }
        code(&profile.default_action, profile.default_errno_ret).unwrap()
    }

    #[test]
    fn the_default_profile() {
        let program = compile(&runtime_default(DEFAULT_CAPABILITIES)).unwrap().unwrap();
        let run =
            |name: &str, a0: u64| execute(&program, AUDIT_ARCH, number(name).unwrap(), [a0, 0, 0, 0, 0, 0]);
        assert_eq!(run("read", 0), ALLOW);
        assert_eq!(run("unshare", 0), ERRNO | EPERM);
        assert_eq!(run("keyctl", 0), ERRNO | EPERM);
        assert_eq!(run("clone3", 0), ERRNO | ENOSYS);
        assert_eq!(run("clone", 0x11), ALLOW);
        assert_eq!(run("clone", 0x2000_0011), ERRNO | EPERM);
        assert_eq!(run("socket", 2), ALLOW);
        assert_eq!(run("socket", 40), ERRNO | EPERM);
        assert_eq!(execute(&program, 0x4000_0003, 0, [0; 6]), KILL_PROCESS);
        assert!(program.len() < 1_000, "{}", program.len());
    }

    #[test]
    fn allowing_everything_needs_no_filter() {
        let profile = Seccomp { default_action: "SCMP_ACT_ALLOW".into(), ..Seccomp::default() };
        assert_eq!(compile(&profile).unwrap(), None);
        let unknown = Seccomp { default_action: "SCMP_ACT_NOTIFY".into(), ..Seccomp::default() };
        assert!(compile(&unknown).is_err());
    }

    fn rule() -> impl Strategy<Value = Rule> {
        let names = prop::sample::select(vec![
            "read", "write", "open", "close", "mmap", "clone", "openat", "no_such",
        ]);
        let ops = prop::sample::select(vec!["EQ", "NE", "LT", "LE", "GT", "GE", "MASKED_EQ"]);
        let numbers = prop::sample::select(vec![0, 1, 5, 6, 1 << 32, (1 << 32) + 5, u64::MAX]);
        let arg = (0_u32..3, numbers.clone(), numbers, ops).prop_map(|(index, value, value_two, op)| Arg {
            index,
            value,
            value_two,
            op: format!("SCMP_CMP_{op}"),
        });
        let actions = prop::sample::select(vec!["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_LOG"]);
        (prop::collection::vec(names, 1..4), prop::collection::vec(arg, 0..3), actions, 1_u32..9).prop_map(
            |(names, args, action, errno)| Rule {
                names: names.into_iter().map(str::to_owned).collect(),
                action: action.to_owned(),
                errno_ret: Some(errno),
                args,
            },
        )
    }

    proptest! {
        #[test]
        fn compiled_equals_naive(
            rules in prop::collection::vec(rule(), 0..8),
            call in 0_u32..64,
            args in prop::array::uniform6(prop::sample::select(vec![0, 1, 4, 5, 6, 1 << 32, (1 << 32) + 5, (2 << 32) + 1, u64::MAX])),
        ) {
            let profile = Seccomp { default_action: "SCMP_ACT_TRAP".into(), syscalls: rules, ..Seccomp::default() };
            let program = compile(&profile).unwrap().unwrap();
            prop_assert_eq!(execute(&program, AUDIT_ARCH, call, args), twin(&profile, call, args));
        }
    }
}
