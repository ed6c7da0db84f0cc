//! Every seed and every kept input once more, without instrumentation: what failed once does not fail again.

use fuzz_targets::{MAZE, TARGETS, corpus_of};

#[test]
fn kept_inputs_pass() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut files = 0;
    for target in TARGETS {
        let kept = std::fs::read_to_string(folder.join(format!("{}.txt", target.name))).unwrap_or_default();
        files += usize::from(!kept.is_empty());
        let inputs = corpus_of(&kept).unwrap_or_else(|line| panic!("{}: {line}", target.name));
        for input in (target.seeds)().iter().chain(&inputs) {
            println!("{}: {}", target.name, input.escape_ascii());
            (target.run)(input);
        }
    }
    let there = std::fs::read_dir(&folder).unwrap().count();
    assert_eq!(files, there, "a file in {} belongs to no target, or is empty", folder.display());
}

#[test]
fn bytes_survive_their_lines() {
    let bytes: Vec<u8> = (0..=255).collect();
    assert_eq!(corpus_of(&bytes.escape_ascii().to_string()), Ok(vec![bytes]));
    assert!(corpus_of("\\x4").is_err());
}

#[test]
fn a_finding_is_a_panic() {
    let mut way = (0x1d3f_77b6_u32 ^ 0x5a5a_5a5a).to_be_bytes().to_vec();
    way.extend_from_slice(b"maze");
    assert!(std::panic::catch_unwind(|| (MAZE.run)(&way)).is_err());
}
