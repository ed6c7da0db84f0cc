//! Logs, terminals, exec, attach.

use crate::node::{DEADLINE, Node};
use runtime::RuntimeError;
use runtime::api::ExecSpec;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::time::Duration;

fn args(list: &[&str]) -> Vec<String> {
    list.iter().map(|&a| a.to_owned()).collect()
}

/// Reads to the end on a thread of its own; a terminal's end is an error.
async fn read_all(fd: OwnedFd) -> String {
    let read = tokio::task::spawn_blocking(move || {
        let (mut file, mut all, mut buffer) = (File::from(fd), Vec::new(), [0; 4096]);
        while let Ok(n @ 1..) = file.read(&mut buffer) {
            all.extend_from_slice(&buffer[..n]);
        }
        String::from_utf8_lossy(&all).into_owned()
    });
    tokio::time::timeout(DEADLINE, read).await.expect("no end of output").unwrap()
}

pub async fn log_rotation(node: &mut Node) {
    node.pod("p").await;
    let mut spec = node.sh("c", "i=0; while [ $i -lt 2000 ]; do echo line $i of many; i=$((i+1)); done");
    spec.log.max_bytes = 20_000;
    spec.log.max_files = 3;
    let (exit, log) = node.run_to_end("p", spec).await;
    assert_eq!(exit.code, 0);
    let folder = node.log_path("c").parent().unwrap().to_owned();
    let sizes: Vec<u64> =
        fs::read_dir(&folder).unwrap().flatten().map(|e| e.metadata().unwrap().len()).collect();
    assert_eq!(sizes.len(), 3, "{sizes:?}");
    assert!(sizes.iter().all(|&s| s < 120_000), "{sizes:?}");
    assert!(log.is_empty() || log.contains("line 1999 of many"), "{}", &log[log.len().min(100)..]);
}

/// Much output, one very long line: complete, and the shim stays small.
pub async fn log_volume(node: &mut Node) {
    node.pod("p").await;
    let spec = node.sh("c", "head -c 100000 /dev/zero | tr '\\0' x; echo; yes 0123456789 | head -n 400000");
    let (_, log) = node.run_to_end("p", spec).await;
    assert_eq!(log.bytes().filter(|&b| b == b'x').count(), 100_000);
    assert_eq!(log.matches("0123456789").count(), 400_000);
    let pid = node.runtime.pod("p").unwrap().shim_pid;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let anon = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).unwrap();
    let kib: u64 = anon.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib < 1_500, "shim holds {kib} KiB");
}

pub async fn exec_output_and_code(node: &mut Node) {
    node.pod("p").await;
    let mut spec = node.sh("c", "sleep 1000");
    spec.config.process.env.push("COLOUR=blue".into());
    spec.config.process.cwd = "/work".into();
    spec.config.process.user.uid = 1000;
    node.start("p", spec).await;
    let spec = ExecSpec {
        args: args(&[
            "sh",
            "-c",
            "cat; echo $COLOUR $HOME; pwd; id -u; echo oops >&2; ps | grep -c sleep; exit 5",
        ]),
        stdin: true,
        stdout: true,
        stderr: true,
        ..ExecSpec::default()
    };
    let mut session = node.runtime.exec("p", "c", spec).await.unwrap();
    let mut stdin = File::from(session.stdin.take().unwrap());
    stdin.write_all(b"hello\n").unwrap();
    drop(stdin);
    let out = read_all(session.stdout.take().unwrap()).await;
    assert!(out.starts_with("hello\nblue /home/alice\n/work\n1000\n"), "{out}");
    assert_eq!(read_all(session.stderr.take().unwrap()).await, "oops\n");
    assert_eq!(tokio::time::timeout(DEADLINE, session.wait()).await.unwrap(), 5);
    assert_eq!(session.wait().await, 5);

    let error = node
        .runtime
        .exec("p", "c", ExecSpec { args: args(&["nope"]), stdout: true, ..ExecSpec::default() })
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "exec: \"nope\": executable file not found in $PATH: unknown");
    assert!(node.runtime.exec("p", "x", ExecSpec::default()).await.is_err());
}

pub async fn exec_sync(node: &mut Node) {
    node.pod("p").await;
    node.start("p", node.container("c", &["sleep", "1000"])).await;
    let run = |line: &'static str, limit| node.runtime.exec_sync("p", "c", args(&["sh", "-c", line]), limit);
    let long = DEADLINE;
    assert_eq!(run("echo yes; exit 3", long).await.unwrap(), (3, b"yes\n".to_vec()));
    // Output is bounded, a program that writes more still ends.
    let (code, output) = run("yes | head -c 1000000; exit 1", long).await.unwrap();
    assert_eq!((code, output.len()), (1, 16 * 1024));
    // Whoever is left behind with the pipe does not hold the result up.
    let (code, output) = run("sleep 1000 & echo here", long).await.unwrap();
    assert_eq!((code, output), (0, b"here\n".to_vec()));
    let late = run("echo $$ > /tmp/pid; exec sleep 1000", Duration::from_millis(300)).await.unwrap_err();
    assert!(matches!(late, RuntimeError::Timeout { .. }), "{late}");
    let gone =
        "i=0; while kill -0 $(cat /tmp/pid); do i=$((i+1)); [ $i -gt 5000 ] && exit 1; sleep 0.01; done 2>&-";
    assert_eq!(run(gone, long).await.unwrap().0, 0);
}

pub async fn exec_terminal(node: &mut Node) {
    node.pod("p").await;
    node.start("p", node.container("c", &["sleep", "1000"])).await;
    let spec = ExecSpec {
        args: args(&["sh", "-c", "tty; read x; stty size; echo got $x; exit 6"]),
        tty: true,
        stdin: true,
        stdout: true,
        ..ExecSpec::default()
    };
    let mut session = node.runtime.exec("p", "c", spec).await.unwrap();
    session.resize(132, 43);
    File::from(session.stdin.take().unwrap()).write_all(b"key\n").unwrap();
    let out = session.stdout.take().unwrap();
    assert_eq!(tokio::time::timeout(DEADLINE, session.wait()).await.unwrap(), 6);
    let text = read_all(out).await;
    assert!(text.contains("/dev/pts/") && text.contains("43 132") && text.contains("got key"), "{text}");
}

/// A client that leaves ends the program's input; the program runs on.
pub async fn exec_client_leaves(node: &mut Node) {
    node.pod("p").await;
    node.start("p", node.container("c", &["sleep", "1000"])).await;
    let spec = ExecSpec {
        args: args(&["sh", "-c", "cat; echo end > /tmp/done"]),
        stdin: true,
        ..ExecSpec::default()
    };
    drop(node.runtime.exec("p", "c", spec).await.unwrap());
    let wait = "until test -e /tmp/done; do sleep 0.01; done";
    let (code, _) = node.runtime.exec_sync("p", "c", args(&["sh", "-c", wait]), DEADLINE).await.unwrap();
    assert_eq!(code, 0);
}

pub async fn terminal_container(node: &mut Node) {
    node.pod("p").await;
    let mut spec = node.sh("c", "tty; test -t 0 && test -t 2 && echo all; read x; stty size; echo got $x");
    spec.config.process.terminal = true;
    spec.stdin = true;
    node.start("p", spec).await;
    node.wait_log("c", "all").await;
    node.runtime.resize_tty("p", "c", 100, 30).await.unwrap();
    let mut session = node.runtime.attach("p", "c", true).await.unwrap();
    assert!(session.tty && session.stderr.is_none());
    File::from(session.stdin.take().unwrap()).write_all(b"typed\n").unwrap();
    let text = read_all(session.stdout).await;
    assert!(text.contains("30 100") && text.contains("got typed"), "{text}");
    assert_eq!(node.exit("p", "c").await.code, 0);
    assert!(node.log("c").contains("/dev/pts/0") && node.log("c").contains("got typed"), "{}", node.log("c"));
}

pub async fn attach_several(node: &mut Node) {
    node.pod("p").await;
    let mut spec = node.sh("c", "read x; echo out $x; echo err $x >&2; cat");
    spec.stdin = true;
    spec.stdin_once = true;
    node.start("p", spec).await;
    let watcher = node.runtime.attach("p", "c", false).await.unwrap();
    assert!(watcher.stdin.is_none());
    let mut client = node.runtime.attach("p", "c", true).await.unwrap();
    let mut stdin = File::from(client.stdin.take().unwrap());
    stdin.write_all(b"1\nmore\n").unwrap();
    // stdin_once: this was the only write end, so `cat` ends.
    drop(stdin);
    for session in [watcher, client] {
        assert_eq!(read_all(session.stdout).await, "out 1\nmore\n");
        assert_eq!(read_all(session.stderr.unwrap()).await, "err 1\n");
    }
    assert_eq!(node.exit("p", "c").await.code, 0);
    assert!(node.runtime.attach("p", "c", false).await.is_err());
}

/// Without `stdin_once`, the input stays open when a client leaves.
pub async fn attach_again(node: &mut Node) {
    node.pod("p").await;
    let mut spec = node.sh("c", "read x; read y; echo $x $y");
    spec.stdin = true;
    node.start("p", spec).await;
    for word in ["one\n", "two\n"] {
        let session = node.runtime.attach("p", "c", true).await.unwrap();
        File::from(session.stdin.unwrap()).write_all(word.as_bytes()).unwrap();
    }
    assert_eq!(node.exit("p", "c").await.code, 0);
    assert_eq!(node.log("c"), "one two\n");
}

/// A client that does not read for a while loses nothing, and one that leaves holds nobody up.
pub async fn attach_slow(node: &mut Node) {
    node.pod("p").await;
    let mut spec = node.sh("c", "read x; seq 1 200000");
    spec.stdin = true;
    node.start("p", spec).await;
    let leaver = node.runtime.attach("p", "c", false).await.unwrap();
    let session = node.runtime.attach("p", "c", true).await.unwrap();
    File::from(session.stdin.unwrap()).write_all(b"go\n").unwrap();
    node.wait_log("c", "5").await;
    drop(leaver);
    let text = read_all(session.stdout).await;
    assert_eq!(text.lines().count(), 200_000);
    assert_eq!(node.exit("p", "c").await.code, 0);
}
