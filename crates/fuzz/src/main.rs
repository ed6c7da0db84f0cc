//! The fuzzer: changes inputs, keeps those that reach something new, stops at the first that fails.
//!
//! `fuzz [TARGET] [--seconds N] [--seed N] [--keep]`, made and started by `cargo xtask fuzz`. Each target runs in a
//! process of its own, with little memory and a watchdog; what writes files runs in an empty root folder. The input
//! at work is always in `target/fuzz/<target>.current`, so that no death loses it. `--keep` writes the inputs that are
//! worth keeping to `corpus/<target>.txt`.
//! Deliberately not here: what is fuzzed (`lib.rs`), minimising what is not a panic.

mod coverage;
mod mutate;

use anyhow::{Context, Result, bail, ensure};
use coverage::EDGES_MAX;
use fuzz_targets::{MAZE, TARGETS, Target, corpus_of};
use mutate::{Dice, Matter, mutated};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Longest input: bugs of size have tests of their own.
const BYTES_MAX: usize = 8 << 10;
/// Address space of a target's process: a parser of a few kilobytes that takes more has a hole.
const MEMORY_MAX: u64 = 1 << 30;
/// The longest that one input may take, on a busy machine.
const RUN_MAX: Duration = Duration::from_secs(10);
/// Steps of an edge's count that are told apart: 1, 2, 3, 4–7, 8–15, 16–31, 32–127, more.
const STEPS: usize = 8;
/// Bytes of a target's kept inputs, as they are written.
const KEPT_MAX: usize = 8 << 10;

/// The last panic's words and place.
static PANIC: Mutex<String> = Mutex::new(String::new());

struct Options {
    seconds: f64,
    seed: u64,
    keep: bool,
    /// Where a target that writes files is locked in.
    root: PathBuf,
}

fn main() -> Result<()> {
    let mut options = Options { seconds: 60.0, seed: 0, keep: false, root: PathBuf::new() };
    let (mut names, mut args) = (Vec::new(), std::env::args().skip(1));
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match &*arg {
            "--seconds" => options.seconds = value()?.parse().context("--seconds")?,
            "--seed" => options.seed = value()?.parse().context("--seed")?,
            "--root" => options.root = value()?.into(),
            "--keep" => options.keep = true,
            _ => names.push(arg),
        }
    }
    if options.seed == 0 {
        options.seed = u64::from(std::process::id()) << 20 | 1;
    }
    match &names.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => TARGETS.iter().try_for_each(|target| start(target, &options)),
        ["work", name] => work(named(name)?, &options),
        ["maze"] => {
            ensure!(
                start(&MAZE, &options).is_err(),
                "the maze was not solved: is this built by `cargo xtask fuzz`?"
            );
            println!("as it should: coverage guides");
            Ok(())
        }
        [name] => start(named(name)?, &options),
        _ => bail!("usage: fuzz [TARGET | maze] [--seconds N] [--seed N] [--keep]"),
    }
}

fn named(name: &str) -> Result<&'static Target> {
    let found = TARGETS.iter().chain([&MAZE]).find(|target| target.name == name);
    let known: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    found.with_context(|| format!("no target {name}; there are {}", known.join(", ")))
}

fn corpus_file(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("corpus/{}.txt", target.name))
}

fn current_file(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../target/fuzz/{}.current", target.name))
}

/// Runs a target in a process of its own.
fn start(target: &Target, options: &Options) -> Result<()> {
    let current = current_file(target);
    std::fs::create_dir_all(current.parent().context("a file is in a folder")?)?;
    let shm = Path::new("/dev/shm");
    let root = tempfile::tempdir_in(if shm.is_dir() { shm } else { Path::new("/tmp") })?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--root").arg(root.path());
    command.args(["work", target.name, "--seconds", &options.seconds.to_string()]);
    command.args(["--seed", &options.seed.to_string()]).env_remove("TMPDIR");
    if options.keep {
        command.arg("--keep");
    }
    let status = command.status()?;
    if status.success() {
        return Ok(());
    }
    let input = std::fs::read(&current)?.escape_ascii().to_string();
    bail!("{}: {status} (seed {}) on this line for corpus/{0}.txt:\n{input}", target.name, options.seed)
}

/// The way from inputs to what they reach.
struct Bench {
    target: &'static Target,
    current: File,
    runs: Arc<AtomicU64>,
    seen: Vec<bool>,
    features: usize,
    corpus: Vec<Entry>,
}

struct Entry {
    bytes: Vec<u8>,
    compared: Vec<[u64; 2]>,
}

fn work(target: &'static Target, options: &Options) -> Result<()> {
    let kept = std::fs::read_to_string(corpus_file(target)).unwrap_or_default();
    let mut inputs = (target.seeds)();
    inputs.extend(corpus_of(&kept).map_err(anyhow::Error::msg)?);
    let keep = options.keep.then(|| File::create(corpus_file(target))).transpose()?;
    let runs = Arc::new(AtomicU64::new(0));
    let current = File::create(current_file(target))?;
    let bench = Bench {
        target,
        current,
        runs: runs.clone(),
        seen: vec![false; EDGES_MAX * STEPS],
        features: 0,
        corpus: Vec::new(),
    };
    confine(target, &options.root)?;
    watch_over(runs);
    std::panic::set_hook(Box::new(|info| {
        *PANIC.lock().expect("nobody panics holding it") = info.to_string()
    }));
    bench.fuzz(inputs, options, keep)
}

/// Bounds memory; a target that writes files gets a root folder of its own.
fn confine(target: &Target, root: &Path) -> Result<()> {
    use rustix::process::{Resource, Rlimit, chroot, setrlimit};
    setrlimit(Resource::As, Rlimit { current: Some(MEMORY_MAX), maximum: Some(MEMORY_MAX) })?;
    if target.writes {
        std::fs::create_dir_all(root.join("tmp"))?;
        chroot(root).context("a target that writes files needs root")?;
        std::env::set_current_dir("/")?;
    }
    Ok(())
}

/// Ends the process when an input takes too long.
fn watch_over(runs: Arc<AtomicU64>) {
    std::thread::spawn(move || {
        let (mut before, mut since) = (0, Instant::now());
        loop {
            std::thread::sleep(Duration::from_millis(200));
            let now = runs.load(Relaxed);
            if now != before {
                (before, since) = (now, Instant::now());
            } else if since.elapsed() > RUN_MAX {
                eprintln!("an input takes more than {RUN_MAX:?}");
                std::process::abort();
            }
        }
    });
}

impl Bench {
    fn fuzz(mut self, inputs: Vec<Vec<u8>>, options: &Options, keep: Option<File>) -> Result<()> {
        let begun = Instant::now();
        let mut dice = Dice(options.seed);
        for input in inputs {
            self.step(input)?;
        }
        while begun.elapsed().as_secs_f64() < options.seconds {
            // Half of the time from what was found last.
            let count = self.corpus.len();
            let recent = if dice.below(2) == 0 { count.min(16) } else { count };
            let entry = &self.corpus[count - 1 - dice.below(recent)];
            let other = &self.corpus[dice.below(count)].bytes;
            let words = self.target.words;
            let matter = Matter { words, other, compared: &entry.compared, bytes_max: BYTES_MAX };
            let input = mutated(&entry.bytes, &matter, &mut dice);
            self.step(input)?;
        }
        let runs = self.runs.load(Relaxed);
        let rate = runs as f64 / begun.elapsed().as_secs_f64();
        println!(
            "{:<16} {runs:>9} runs {rate:>7.0}/s {:>6} inputs {:>7} features",
            self.target.name,
            self.corpus.len(),
            self.features
        );
        if let Some(file) = keep {
            self.keep(&file)?;
        }
        Ok(())
    }

    /// Runs an input; keeps it if it reached something new.
    fn step(&mut self, input: Vec<u8>) -> Result<()> {
        let (met, failed) = self.run(&input)?;
        if failed {
            let said = PANIC.lock().expect("nobody panics holding it").clone();
            let small = self.smaller(input)?;
            self.record(&small)?;
            bail!("{said}");
        }
        if self.note(&met) || self.corpus.is_empty() {
            self.corpus.push(Entry { bytes: input, compared: met.compared });
        }
        Ok(())
    }

    fn record(&self, input: &[u8]) -> Result<()> {
        self.current.set_len(input.len() as u64)?;
        Ok(self.current.write_all_at(input, 0)?)
    }

    fn run(&mut self, input: &[u8]) -> Result<(coverage::Met, bool)> {
        self.record(input)?;
        let mut failed = false;
        let run = self.target.run;
        let met =
            coverage::of(|| failed = std::panic::catch_unwind(AssertUnwindSafe(|| run(input))).is_err());
        self.runs.fetch_add(1, Relaxed);
        Ok((met, failed))
    }

    /// Is there anything new?
    fn note(&mut self, met: &coverage::Met) -> bool {
        let before = self.features;
        for (edge, count) in &met.edges {
            let step = [2, 3, 4, 8, 16, 32, 128].partition_point(|bound| bound <= count);
            let seen = &mut self.seen[edge * STEPS + step];
            self.features += usize::from(!std::mem::replace(seen, true));
        }
        self.features > before
    }

    /// What still fails with pieces taken out.
    fn smaller(&mut self, mut input: Vec<u8>) -> Result<Vec<u8>> {
        let mut piece = input.len() / 2;
        while piece > 0 {
            let mut at = 0;
            while at < input.len() {
                let mut tried = input.clone();
                tried.drain(at..(at + piece).min(input.len()));
                if self.run(&tried)?.1 { input = tried } else { at += piece }
            }
            piece /= 2;
        }
        Ok(input)
    }

    /// Writes the shortest inputs that together reach everything, as far as there is room.
    fn keep(mut self, file: &File) -> Result<()> {
        use std::io::Write;
        let mut inputs: Vec<Vec<u8>> =
            std::mem::take(&mut self.corpus).into_iter().map(|entry| entry.bytes).collect();
        inputs.sort_by_key(Vec::len);
        self.seen.fill(false);
        let (mut lines, mut bytes) = (Vec::new(), 0);
        for input in (self.target.seeds)() {
            let (met, _) = self.run(&input)?;
            self.note(&met);
        }
        for input in inputs {
            let (met, _) = self.run(&input)?;
            let line = input.escape_ascii().to_string();
            if bytes + line.len() <= KEPT_MAX && self.note(&met) {
                bytes += line.len() + 1;
                lines.push(line + "\n");
            }
        }
        lines.sort();
        let mut file = file;
        Ok(file.write_all(lines.concat().as_bytes())?)
    }
}
