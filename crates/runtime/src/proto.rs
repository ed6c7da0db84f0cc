//! What runtime and shim say to each other, version 1: one JSON document a message on a `SOCK_SEQPACKET` Unix
//! socket, descriptors beside it where noted. Both ends may be of different releases: fields are only added.
//!
//! Big things travel as files in the pod's state folder: `pod.json` ([`PodFile`]) and `c/<id>/container.json`
//! ([`ContainerFile`]), written before the message that names them.

use crate::api::{ContainerSpec, ContainerState, ExecSpec, PodSpec};
use crate::cgroup::Join;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The protocol's version.
pub const VERSION: u32 = 1;
/// Longest message: fits a socket's default buffer with room to spare; an exec's arguments are the longest.
pub const MESSAGE_MAX: usize = 64 * 1024;

/// `pod.json`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PodFile {
    /// [`VERSION`] of the writer.
    pub v: u32,
    /// The pod.
    pub spec: PodSpec,
    /// The shim's own cgroup.
    pub join: Join,
}

/// `container.json`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ContainerFile {
    /// [`VERSION`] of the writer.
    pub v: u32,
    /// The container; `config.linux.cgroupsPath` and `config.root.path` are filled in.
    pub spec: ContainerSpec,
    /// Its cgroup.
    pub join: Join,
    /// The OCI runtime that makes it; `None`: the shim itself.
    pub handler: Option<PathBuf>,
}

/// Runtime to shim.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the runtime, comes back in the answer.
    pub id: u64,
    /// What to do.
    pub op: Op,
}

/// What a shim can do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Make a container from its file, up to the point where only its program is missing. With it come detached
    /// copies of the mounts that it shares with the node (`rshared`, no subpath), in the order of its mounts.
    Create {
        /// Container id.
        container: String,
    },
    /// Run a made container's program.
    Start {
        /// Container id.
        container: String,
    },
    /// Signal a container's first process.
    Signal {
        /// Container id.
        container: String,
        /// Number.
        signal: i32,
    },
    /// Forget an exited container.
    Forget {
        /// Container id.
        container: String,
    },
    /// All states.
    List {},
    /// Run one more program in a container. Answer: [`Answer::Exec`] with descriptors, in order: the terminal's
    /// master, or those asked for of stdin, stdout, stderr.
    Exec {
        /// Container id.
        container: String,
        /// The program.
        spec: ExecSpec,
    },
    /// Signal an exec's process.
    SignalExec {
        /// Number from [`Answer::Exec`].
        exec: u64,
        /// Number.
        signal: i32,
    },
    /// Watch a container's output. Answer: [`Answer::Attach`] with descriptors, in order: stdin where open,
    /// stdout, stderr unless there is a terminal.
    Attach {
        /// Container id.
        container: String,
        /// Connect stdin.
        stdin: bool,
    },
    /// Size of a container's terminal.
    Resize {
        /// Container id.
        container: String,
        /// Columns.
        width: u16,
        /// Rows.
        height: u16,
    },
}

/// Shim to runtime.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// First on every connection.
    Hello {
        /// [`VERSION`] of the shim.
        v: u32,
        /// Its PID.
        pid: i32,
    },
    /// The shim could not set itself up; it ends.
    SetupFailed {
        /// Name of the step.
        step: String,
        /// Why.
        error: String,
    },
    /// A request worked.
    Done {
        /// The request's.
        id: u64,
        /// What it gave.
        answer: Answer,
    },
    /// A request failed.
    Failed {
        /// The request's.
        id: u64,
        /// Name of the step.
        step: String,
        /// Why.
        error: String,
    },
    /// A container changed state.
    State {
        /// Container id.
        container: String,
        /// Its new state.
        state: ContainerState,
    },
    /// An exec'd process ended.
    ExecExited {
        /// Number from [`Answer::Exec`].
        exec: u64,
        /// Exit code; 128 + signal.
        code: i32,
    },
}

/// What a request gave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Nothing but success.
    Ok,
    /// All containers.
    States(BTreeMap<String, ContainerState>),
    /// The exec's number.
    Exec(u64),
    /// Whether the first descriptor is stdin, and whether it is a terminal's master.
    Attach {
        /// The first descriptor is stdin.
        stdin: bool,
        /// The container has a terminal.
        tty: bool,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Exit;

    fn golden<T: Serialize + for<'a> Deserialize<'a> + PartialEq + std::fmt::Debug>(value: &T, json: &str) {
        assert_eq!(serde_json::to_string(value).unwrap(), json);
        assert_eq!(&serde_json::from_str::<T>(json).unwrap(), value);
    }

    /// Shims live on over an upgrade: these words must not change.
    #[test]
    fn version_1_is_frozen() {
        let c = || "c-0".to_owned();
        golden(
            &Request { id: 1, op: Op::Create { container: c() } },
            r#"{"id":1,"op":{"create":{"container":"c-0"}}}"#,
        );
        golden(&Request { id: 2, op: Op::List {} }, r#"{"id":2,"op":{"list":{}}}"#);
        golden(
            &Request { id: 3, op: Op::Signal { container: c(), signal: 15 } },
            r#"{"id":3,"op":{"signal":{"container":"c-0","signal":15}}}"#,
        );
        golden(
            &Request {
                id: 4,
                op: Op::Exec {
                    container: c(),
                    spec: ExecSpec { args: vec!["ls".into()], stdout: true, ..ExecSpec::default() },
                },
            },
            r#"{"id":4,"op":{"exec":{"container":"c-0","spec":{"args":["ls"],"tty":false,"stdin":false,"stdout":true,"stderr":false}}}}"#,
        );
        golden(&Message::Hello { v: 1, pid: 7 }, r#"{"hello":{"v":1,"pid":7}}"#);
        golden(&Message::Done { id: 4, answer: Answer::Exec(9) }, r#"{"done":{"id":4,"answer":{"exec":9}}}"#);
        golden(&Message::Done { id: 1, answer: Answer::Ok }, r#"{"done":{"id":1,"answer":"ok"}}"#);
        let exit =
            Exit { code: 137, signal: 9, oom_killed: true, finished_at_ns: 5, start_error: String::new() };
        golden(
            &Message::State { container: c(), state: ContainerState::Exited { started_at_ns: 3, exit } },
            r#"{"state":{"container":"c-0","state":{"Exited":{"started_at_ns":3,"exit":{"code":137,"signal":9,"oom_killed":true,"finished_at_ns":5,"start_error":""}}}}}"#,
        );
    }
}
