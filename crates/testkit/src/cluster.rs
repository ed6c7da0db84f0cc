//! A whole Gantry for one test: its own network namespace, data folder, cgroup prefix and device names.
//!
//! Invariants: traffic stays in the namespace made here; dropping a [`Cluster`] runs `gantry down` and then fails
//! the test if a process, cgroup, mount or run folder of the instance is left.

use crate::debian::{RECIPES, archive};
use crate::image::ImageBuilder;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long `gantry up` may take to say that it is ready (debug build, loaded machine).
const READY_DEADLINE: Duration = Duration::from_secs(300);
/// How long [`Cluster::eventually`] waits. Long: back-offs add up where a machine is busy, and only failures wait for it.
const EVENTUALLY: Duration = Duration::from_secs(300);
/// How long the last words of an ended process may take to be read.
const LAST_WORDS: Duration = Duration::from_secs(30);
/// How long one command may take, in seconds.
const COMMAND_MAX: &str = "300";
/// Where registries' tools keep passwords.
const LOGINS: &str = "registry-logins.json";
/// Pause between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// The node's address in its namespace; the peer of its device has the next one.
pub const NODE_IP: &str = "10.99.0.1";

/// A small HTTP client: the `wget` of Debian's static busybox crashes at random.
const GET: &str = "#!/bin/sh\nprintf 'GET / HTTP/1.0\\r\\nHost: x\\r\\n\\r\\n' | nc -w 3 \"$1\" \"${2:-80}\" > /tmp/get.$$ || exit 1\nsed '1,/^\\r$/d' /tmp/get.$$; rm /tmp/get.$$\n";

static COUNT: AtomicU32 = AtomicU32::new(0);
/// Tests run in parallel; an archive is made once.
static ARCHIVES: Mutex<()> = Mutex::new(());

/// Which kubectl to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kubectl {
    /// Debian 12's, v1.20.
    Debian,
    /// The newest on this machine.
    Newest,
}

impl Kubectl {
    /// Where the binary is; the test script puts Debian's under `target/tools`.
    pub fn path(self) -> PathBuf {
        let debian =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/kubectl-1.20/usr/bin/kubectl");
        match self {
            Kubectl::Debian if debian.exists() => debian,
            _ => "kubectl".into(),
        }
    }
}

/// A running instance.
pub struct Cluster {
    gantry: PathBuf,
    name: String,
    folder: tempfile::TempDir,
    holder: Child,
    process: Option<Child>,
    output: Arc<Mutex<String>>,
    flags: Vec<String>,
}

impl Cluster {
    /// `gantry up` with extra flags, waited for until it is ready.
    pub fn start(gantry: impl Into<PathBuf>, flags: &[&str]) -> Result<Cluster> {
        let mut cluster = Cluster::prepare(gantry, flags)?;
        cluster.up()?;
        Ok(cluster)
    }

    /// All but the process: [`Cluster::up`] starts that, in the namespace that is there already.
    pub fn prepare(gantry: impl Into<PathBuf>, flags: &[&str]) -> Result<Cluster> {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("g{:x}{count:x}", std::process::id() & 0xf_ffff);
        let cluster = Cluster {
            gantry: gantry.into(),
            name,
            folder: tempfile::tempdir()?,
            holder: hold_namespace()?,
            process: None,
            output: Arc::default(),
            flags: flags.iter().map(|f| f.to_string()).collect(),
        };
        fs::write(cluster.folder().join(LOGINS), "{}")?;
        Ok(cluster)
    }

    /// Starts the process (again) and waits until it is ready.
    pub fn up(&mut self) -> Result<()> {
        let mut command = self.inside(&self.gantry);
        command.arg("up").args(["--name", &self.name, "--data-dir"]).arg(self.folder.path());
        command.args(["--node-ip", NODE_IP, "--node-name", "node-1"]).args(&self.flags);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(Stdio::null()).spawn()?;
        self.output.lock().expect("no panics under this lock").clear();
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let readers =
            [self.collect(out.context("stdout is piped")?), self.collect(err.context("stderr is piped")?)];
        self.process = Some(child);
        let deadline = Instant::now() + READY_DEADLINE;
        // (`Address already in use` has these words too.)
        while !self.output().lines().any(|line| line.starts_with("ready in ")) {
            if self.process.as_mut().and_then(|p| p.try_wait().transpose()).is_some() {
                // Bounded: a pod's process may have the pipe, too.
                let deadline = Instant::now() + LAST_WORDS;
                while !readers.iter().all(|r| r.is_finished()) && Instant::now() < deadline {
                    std::thread::sleep(LOOK_AGAIN);
                }
                bail!("gantry up ended:\n{}", self.output());
            }
            ensure!(Instant::now() < deadline, "gantry up is not ready:\n{}", self.output());
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    fn collect(&self, stream: impl std::io::Read + Send + 'static) -> JoinHandle<()> {
        let output = self.output.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                *output.lock().expect("no panics under this lock") += &(line + "\n");
            }
        })
    }

    /// What the process has printed since it was last started.
    pub fn output(&self) -> String {
        self.output.lock().expect("no panics under this lock").clone()
    }

    /// The instance's name (prefix of all it makes).
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The data folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// PID of `gantry up`.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().map_or(0, Child::id)
    }

    /// SIGKILL to `gantry up`, nothing else.
    pub fn kill9(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill()?;
            process.wait()?;
        }
        Ok(())
    }

    /// SIGINT to `gantry up`, as Ctrl-C does; waits for its end.
    pub fn interrupt(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            run(Command::new("kill").args(["-INT", &process.id().to_string()]))?;
            process.wait()?;
        }
        Ok(())
    }

    /// A command inside the instance's network namespace, with its kubeconfig in the environment.
    pub fn inside(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.holder.id())).arg("--").arg(program.as_ref());
        command.env("KUBECONFIG", self.folder.path().join("kubeconfig")).env("HOME", self.folder.path());
        // `skopeo login` would write to a file of the machine's, which other instances' tests read.
        command.env("REGISTRY_AUTH_FILE", self.folder.path().join(LOGINS));
        command
    }

    /// The same, ended after a while: a command that hangs must not hang the tests.
    fn bounded(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = self.inside("timeout");
        command.args(["--kill-after=1", COMMAND_MAX]).arg(program.as_ref());
        command
    }

    /// A shell script inside the namespace; its output, or an error with what it printed.
    pub fn sh(&self, script: &str) -> Result<String> {
        run(self.bounded("sh").args(["-c", script]))
    }

    /// kubectl (the newest); its stdout, or an error with its stderr.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        run(self.bounded(Kubectl::Newest.path()).args(args))
    }

    /// A given kubectl.
    pub fn kubectl_of(&self, which: Kubectl, args: &[&str]) -> Result<String> {
        run(self.bounded(which.path()).args(args))
    }

    /// kubectl with something on its stdin.
    pub fn kubectl_stdin(&self, which: Kubectl, args: &[&str], stdin: &str) -> Result<String> {
        let mut command = self.bounded(which.path());
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        child.stdin.take().context("stdin is piped")?.write_all(stdin.as_bytes())?;
        checked(&command, child.wait_with_output()?)
    }

    /// `kubectl apply -f -`.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        self.kubectl_stdin(Kubectl::Newest, &["apply", "-f", "-"], yaml)
    }

    /// `kubectl get … -o json`.
    pub fn get(&self, args: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[&["get", "-o", "json"], args].concat())?;
        Ok(serde_json::from_str(&text)?)
    }

    /// One field by JSON pointer, as text ("" when absent).
    pub fn field(&self, args: &[&str], pointer: &str) -> Result<String> {
        Ok(match self.get(args)?.pointer(pointer) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        })
    }

    /// `gantry image load`.
    pub fn load_image(&self, archive: &Path) -> Result<String> {
        let mut command = self.bounded(&self.gantry);
        run(command
            .args(["image", "load", "--name", &self.name, "--data-dir"])
            .arg(self.folder.path())
            .arg(archive))
    }

    /// Loads a busybox image under the names `busybox`, `busybox:1.28` and `busybox:1.36`; it has a folder `/www`
    /// and a command `get HOST [PORT]` that prints a page.
    pub fn load_busybox(&self) -> Result<()> {
        let image = ImageBuilder::busybox("busybox:latest")
            .also_named("busybox:1.28")
            .also_named("busybox:1.36")
            .file("bin/get", GET.as_bytes(), 0o755)
            .dir("www", 0o755);
        self.load_image(&image.write_docker_archive(&self.folder().join("busybox.tar")))?;
        Ok(())
    }

    /// Loads a real program's image, made from Debian packages once and kept under `target/images`.
    pub fn load_debian(&self, name: &str) -> Result<()> {
        let recipe = RECIPES.iter().find(|r| r.name == name).context("no such recipe")?;
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/images");
        fs::create_dir_all(&folder)?;
        let _one_at_a_time = ARCHIVES.lock();
        self.load_image(&archive(recipe, &folder)?)?;
        Ok(())
    }

    /// Any gantry command on this instance.
    pub fn gantry(&self, args: &[&str]) -> Result<String> {
        let mut command = self.bounded(&self.gantry);
        run(command.args(args).args(["--name", &self.name, "--data-dir"]).arg(self.folder.path()))
    }

    /// Looks until `look` yields a value; after [`EVENTUALLY`] fails with its last error and the cluster's state.
    pub fn eventually<T>(&self, what: &str, mut look: impl FnMut() -> Result<T>) -> Result<T> {
        let deadline = Instant::now() + EVENTUALLY;
        loop {
            match look() {
                Ok(value) => return Ok(value),
                Err(error) if Instant::now() > deadline => {
                    let state = self.kubectl(&["get", "pods,nodes,events", "-A", "-o", "wide"]);
                    let state = state.unwrap_or_else(|e| e.to_string());
                    bail!("{what}: {error:#}\n{state}\n{}", self.output())
                }
                Err(_) => std::thread::sleep(LOOK_AGAIN),
            }
        }
    }

    /// Waits until a field has this value.
    pub fn wait_field(&self, args: &[&str], pointer: &str, want: &str) -> Result<()> {
        self.eventually(&format!("{args:?} {pointer} = {want}"), || {
            let value = self.field(args, pointer)?;
            ensure!(value == want, "it is {value:?}");
            Ok(())
        })
    }

    /// `gantry down`, then everything that is left of the instance, by name.
    pub fn down(&mut self) -> Result<Vec<String>> {
        let said = self.gantry(&["down"]);
        if let Some(mut process) = self.process.take() {
            if said.is_err() {
                process.kill()?;
            }
            process.wait()?;
        }
        said?;
        self.leftovers()
    }

    fn leftovers(&self) -> Result<Vec<String>> {
        let mut left = Vec::new();
        let holds = |text: &str| {
            text.contains(&format!("/{}/", self.name)) || text.ends_with(&format!("/{}", self.name))
        };
        for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
            if line.split(' ').nth(4).is_some_and(holds) {
                left.push(format!("mount {line}"));
            }
        }
        let trees = fs::read_dir("/sys/fs/cgroup")?.flatten().map(|e| e.path());
        // On v2 there is one tree, and that is the mount itself.
        for tree in trees.chain(["/sys/fs/cgroup".into()]) {
            let path = tree.join(&self.name);
            if path.exists() {
                left.push(format!("cgroup {}", path.display()));
            }
        }
        if Path::new("/run").join(&self.name).exists() {
            left.push(format!("/run/{}", self.name));
        }
        for process in fs::read_dir("/proc")?.flatten() {
            let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            if command.contains("shim") && command.contains(&format!("/run/{}/", self.name)) {
                left.push(format!("process {}", command.trim()));
            }
        }
        let devices = self.sh("ls /sys/class/net 2>/dev/null; ip -o link")?;
        left.extend(devices.lines().filter(|l| l.contains(&self.name)).map(|l| format!("device {l}")));
        let tables = self.sh("nft list tables")?;
        left.extend(tables.lines().filter(|l| l.contains(&self.name)).map(|l| format!("nftables {l}")));
        Ok(left)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let left = self.down();
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        match left {
            _ if std::thread::panicking() => {}
            Ok(left) => assert!(left.is_empty(), "left behind: {left:#?}"),
            Err(error) => panic!("gantry down: {error:#}\n{}", self.output()),
        }
    }
}

/// A process that holds a new network namespace with one device, `eth0`, and an outside behind it.
fn hold_namespace() -> Result<Child> {
    let script = format!(
        "ip link set lo up && ip link add eth0 type veth peer name outside && ip addr add {NODE_IP}/24 dev eth0 && \
         ip link set eth0 up && ip link set outside up && ip route add default via 10.99.0.254 && echo made && exec sleep 100000"
    );
    let mut child =
        Command::new("unshare").args(["--net", "sh", "-c", &script]).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("stdout is piped")?).read_line(&mut line)?;
    ensure!(line.trim() == "made", "making a network namespace failed");
    Ok(child)
}

/// Runs a command to its end: its stdout, or an error that holds everything it printed.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    checked(command, output)
}

fn checked(command: &Command, output: Output) -> Result<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    ensure!(output.status.success(), "{command:?}: {}\n{out}{err}", output.status);
    Ok(out)
}
