//! `cargo xtask vm test [PART]`: the kernel tests on a machine that has cgroup v2 only, as Debian 12 does.
//!
//! Debian's cloud kernel boots under qemu's software emulation with an initrd of our static binaries and the few
//! programs that the tests call. Invariants: nothing is installed on the host; a scenario that does not say `ok` on
//! the console has failed, so a crash, a hang and a kernel panic all count. Deliberately not here: the tests
//! themselves, which are the ones that also run on the host.

use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use testkit::cluster::run;

/// What is run, in order: a name, and a line of shell. `$runtime` and `$gantry` are test binaries.
const SCENARIOS: &[(&str, &str)] = &[
    // Without users::, but for one: the guest has memory file systems only, whose ids Linux maps from 6.3 on.
    ("runtime", "$runtime lifecycle:: streams:: recovery:: isolation:: oracle:: users::output_by_name"),
    // As where systemd manages the machine: other slices are there, and we were started in one of them.
    ("slices", "in_slice $runtime limits lifecycle::out_of_memory recovery::owner_killed"),
    ("limits", "in_slice env CHECK=limits $gantry configs::containers_get"),
    ("oom", "in_slice env CHECK=oom $gantry configs::containers_get"),
    ("survival", "in_slice $gantry survival::"),
];

/// The longest that the machine may run.
const DEADLINE: Duration = Duration::from_secs(300);
/// What the guest says before a result.
const MARK: &str = "gantry-vm:";
/// Programs of the host that the tests call, with the libraries that they need.
const PROGRAMS: &[&str] = &["dash", "ip", "nft", "curl", "nsenter", "unshare", "timeout", "crun", "kubectl"];
/// Parts of the kernel's module tree that a node may ask for; the rest (drivers, file systems) is left out.
const MODULES: &[&str] = &[
    "fs/overlayfs",
    "net",
    "lib",
    "crypto",
    "drivers/net/veth.ko",
    "drivers/net/vxlan",
    "drivers/net/dummy.ko",
];

/// The first process. The root is bound onto itself first: `pivot_root` refuses a root that is the initial one.
const INIT: &str = r#"#!/bin/sh
export PATH=/usr/bin HOME=/root
if [ "$1" != second ]; then
    mkdir -p /new && mount --bind / /new && cd /new && mount --move . / && exec chroot . /init second
    echo "the root cannot be moved"; exec poweroff -f
fi
cd /
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o ptmxmode=0666,newinstance devpts /dev/pts
for at in /dev/shm /run /tmp; do mount -t tmpfs -o mode=1777 tmpfs $at; done
mount -t cgroup2 -o nsdelegate,memory_recursiveprot cgroup2 /sys/fs/cgroup
ip link set lo up
hostname vm
in_slice() { ( echo 0 > /sys/fs/cgroup/user.slice/tests.scope/cgroup.procs; exec "$@" ) }
mkdir -p /sys/fs/cgroup/system.slice/other.service /sys/fs/cgroup/user.slice/tests.scope
( echo 0 > /sys/fs/cgroup/system.slice/other.service/cgroup.procs; exec sleep 100000 ) &
echo "kernel $(uname -r), root cgroup: $(cat /sys/fs/cgroup/cgroup.controllers); enabled: $(cat /sys/fs/cgroup/cgroup.subtree_control)"
. /scenarios
echo "gantry-vm: end"
poweroff -f
"#;

/// Builds, boots, reports; an error when a scenario failed or said nothing.
pub fn test(root: &Path, part: Option<&str>) -> Result<()> {
    let chosen: Vec<_> = SCENARIOS.iter().filter(|(name, _)| part.is_none_or(|p| name.contains(p))).collect();
    ensure!(!chosen.is_empty(), "there are: {:?}", SCENARIOS.iter().map(|s| s.0).collect::<Vec<_>>());
    let folder = root.join("target/vm");
    fs::create_dir_all(&folder)?;
    let kernel = kernel(&root.join("target/tools/kernel"))?;
    let binaries = binaries(root, &chosen)?;
    let initrd = folder.join("initrd");
    let tree = tempfile::tempdir_in(&folder)?;
    lay_out(tree.path(), &kernel, &binaries)?;
    fs::write(tree.path().join("scenarios"), scenarios(&chosen, &binaries)?)?;
    pack(tree.path(), &initrd)?;
    let begin = Instant::now();
    let results = boot(&kernel.image, &initrd, &folder.join("console"))?;
    println!("the machine ran for {} s", begin.elapsed().as_secs());
    let failed: Vec<&str> =
        chosen.iter().map(|s| s.0).filter(|n| results.get(*n).map(String::as_str) != Some("ok")).collect();
    ensure!(
        failed.is_empty(),
        "on cgroup v2, failed: {failed:?} (console: {})",
        folder.join("console").display()
    );
    Ok(())
}

struct Kernel {
    image: PathBuf,
    version: String,
    modules: PathBuf,
}

/// Debian's cloud kernel, fetched by apt and unpacked, once.
fn kernel(folder: &Path) -> Result<Kernel> {
    if !folder.join("boot").exists() {
        fs::create_dir_all(folder)?;
        let depends = run(Command::new("apt-cache").args(["depends", "linux-image-cloud-amd64"]))?;
        let package =
            depends.lines().find_map(|l| l.trim().strip_prefix("Depends: ").filter(|p| p.contains("image")));
        let package = package.context("apt knows no cloud kernel")?;
        run(Command::new("apt-get").args(["download", "-qq", package]).current_dir(folder))
            .context("apt-get update may be due")?;
        for deb in fs::read_dir(folder)?.flatten().map(|e| e.path()) {
            run(Command::new("dpkg").arg("-x").arg(&deb).arg(folder))?;
            fs::remove_file(deb)?;
        }
    }
    let names =
        fs::read_dir(folder.join("boot"))?.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
    let version =
        names.filter_map(|n| Some(n.strip_prefix("vmlinuz-")?.to_owned())).max().context("no kernel")?;
    Ok(Kernel {
        image: folder.join(format!("boot/vmlinuz-{version}")),
        modules: folder.join("lib/modules").join(&version),
        version,
    })
}

/// Builds what the scenarios run; name → file. Paths are the same in the machine.
fn binaries(root: &Path, chosen: &[&(&str, &str)]) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let used = |package: &&str| chosen.iter().any(|(_, line)| line.contains(&format!("${package}")));
    for package in ["runtime", "gantry"].into_iter().filter(used) {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["test", "--package", package, "--test", "it", "--no-run", "--message-format=json"]);
        let output = cargo.current_dir(root).stderr(Stdio::inherit()).output()?;
        ensure!(output.status.success(), "{package} does not build");
        for line in String::from_utf8(output.stdout)?.lines() {
            let message: serde_json::Value = serde_json::from_str(line)?;
            let Some(file) = message["executable"].as_str() else { continue };
            let is_test = message["target"]["kind"][0] == "test";
            found.insert(if is_test { package.to_owned() } else { "binary".to_owned() }, file.into());
        }
    }
    Ok(found)
}

fn scenarios(chosen: &[&(&str, &str)], binaries: &BTreeMap<String, PathBuf>) -> Result<String> {
    let mut script = String::new();
    for (name, file) in binaries {
        writeln!(script, "{name}={}", file.display())?;
    }
    for (name, line) in chosen {
        writeln!(
            script,
            "echo '== {name}'; if {line}; then echo '{MARK} {name} ok'; else echo '{MARK} {name} failed'; fi"
        )?;
    }
    Ok(script)
}

/// The machine's files. `/bin`, `/sbin` and `/usr/sbin` are `/usr/bin`.
fn lay_out(tree: &Path, kernel: &Kernel, binaries: &BTreeMap<String, PathBuf>) -> Result<()> {
    for dir in ["usr/bin", "usr/lib", "usr/lib64", "etc", "dev", "proc", "sys", "run", "tmp", "root", "var"] {
        fs::create_dir_all(tree.join(dir))?;
    }
    for (link, to) in [
        ("bin", "usr/bin"),
        ("sbin", "usr/bin"),
        ("usr/sbin", "bin"),
        ("lib", "usr/lib"),
        ("lib64", "usr/lib64"),
    ] {
        symlink(to, tree.join(link))?;
    }
    for (file, text) in [
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
        ("etc/group", "root:x:0:\n"),
        ("etc/hosts", "127.0.0.1 localhost vm\n"),
        ("etc/resolv.conf", "nameserver 127.0.0.1\n"),
        ("init", INIT),
    ] {
        fs::write(tree.join(file), text)?;
    }
    fs::set_permissions(tree.join("init"), fs::Permissions::from_mode(0o755))?;
    programs(tree)?;
    for file in binaries.values() {
        copy(file, tree)?;
    }
    modules(tree, kernel)
}

/// Copies a file of the host to the same place in the machine.
fn copy(file: &Path, tree: &Path) -> Result<()> {
    let to = tree.join(file.strip_prefix("/")?);
    fs::create_dir_all(to.parent().context("a file has a folder")?)?;
    fs::copy(file, &to).with_context(|| format!("copy {}", file.display()))?;
    Ok(())
}

fn programs(tree: &Path) -> Result<()> {
    let bin = tree.join("usr/bin");
    for name in PROGRAMS {
        let found = run(Command::new("sh").args(["-c", &format!("command -v {name}")]))?;
        let found = Path::new(found.trim());
        fs::copy(found, bin.join(name)).with_context(|| format!("copy {name}"))?;
        // Fails for static programs.
        let libraries = run(Command::new("ldd").arg(found)).unwrap_or_default();
        for library in libraries.split_whitespace().filter(|w| w.starts_with('/')) {
            copy(Path::new(library), tree)?;
        }
    }
    // Debian's busybox prefers its own applets to programs, so it must not be the shell.
    symlink("dash", bin.join("sh"))?;
    fs::copy("/bin/busybox", bin.join("busybox")).context("busybox-static is missing")?;
    for applet in run(Command::new("/bin/busybox").arg("--list"))?.lines() {
        if !bin.join(applet).exists() {
            symlink("busybox", bin.join(applet))?;
        }
    }
    Ok(())
}

/// Copies modules; the kernel loads what it is asked for by way of `/sbin/modprobe`, as on any Debian.
fn modules(tree: &Path, kernel: &Kernel) -> Result<()> {
    let to = tree.join("usr/lib/modules").join(&kernel.version);
    for part in MODULES {
        let from = kernel.modules.join("kernel").join(part);
        let into = to.join("kernel").join(part);
        fs::create_dir_all(into.parent().context("a part is below kernel")?)?;
        run(Command::new("cp").arg("-r").arg(from).arg(into))?;
    }
    for list in ["modules.builtin", "modules.order"] {
        fs::copy(kernel.modules.join(list), to.join(list))?;
    }
    run(Command::new("/bin/busybox").args(["depmod", "-b"]).arg(tree).arg(&kernel.version))?;
    Ok(())
}

fn pack(tree: &Path, initrd: &Path) -> Result<()> {
    let script = "find . -print0 | cpio --null --create --format=newc --owner=0:0 --quiet > \"$0\"";
    run(Command::new("sh").arg("-c").arg(script).arg(initrd).current_dir(tree)).context("cpio is missing")?;
    Ok(())
}

/// Runs the machine to its end; what each scenario said.
fn boot(kernel: &Path, initrd: &Path, console: &Path) -> Result<BTreeMap<String, String>> {
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args([
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        "max",
        "-m",
        "1500",
        "-smp",
        "2",
        "-nographic",
        "-no-reboot",
    ])
    .args(["-nodefaults", "-serial", "stdio", "-kernel"])
    .arg(kernel)
    .arg("-initrd")
    .arg(initrd)
    .args(["-append", "console=ttyS0 quiet panic=-1 systemd.unified_cgroup_hierarchy=1"]);
    let mut machine = qemu
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("qemu-system-x86_64 (package qemu-system-x86)")?;
    let output = machine.stdout.take().context("stdout is piped")?;
    let mut log = fs::File::create(console)?;
    let (send, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let _ = send.send(String::from_utf8_lossy(&line).trim_end().to_owned());
        }
    });
    let (mut results, end) = (BTreeMap::new(), Instant::now() + DEADLINE);
    let finished = loop {
        match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                writeln!(log, "{line}")?;
                println!("{line}");
                let mut words = line.strip_prefix(MARK).unwrap_or_default().split_whitespace();
                if let (Some(name), Some(result)) = (words.next(), words.next()) {
                    results.insert(name.to_owned(), result.to_owned());
                }
            }
            // The console closed: the machine is off.
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break true,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => break false,
        }
    };
    if !finished {
        machine.kill()?;
    }
    machine.wait()?;
    if !finished {
        bail!("the machine is not done after {} s; done: {results:?}", DEADLINE.as_secs());
    }
    Ok(results)
}
