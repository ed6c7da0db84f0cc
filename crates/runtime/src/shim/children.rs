//! Messages from children that are not yet their programs, and the ends of all children.

use super::container::Phase;
use super::serve::Shim;
use crate::init::{CHILD_MESSAGE_MAX, ChildMessage, RUN_STEP};
use crate::proto::{Answer, Message};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use sys::rustix::process::{WaitOptions, wait};

/// What a child's socket said.
enum Said {
    Nothing,
    Message(ChildMessage, Vec<OwnedFd>),
    /// It executes its program, or is gone.
    Closed,
}

fn listen(sync: BorrowedFd<'_>) -> Said {
    use sys::rustix::event::{PollFd, PollFlags, Timespec, poll};
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut fds = [PollFd::from_borrowed_fd(sync, PollFlags::IN)];
    if !poll(&mut fds, Some(&now)).is_ok_and(|n| n > 0) {
        return Said::Nothing;
    }
    let mut buffer = [0; CHILD_MESSAGE_MAX];
    match sys::fdpass::receive(sync, &mut buffer) {
        Ok((n, fds)) if n > 0 => match serde_json::from_slice(&buffer[..n]) {
            Ok(message) => Said::Message(message, fds),
            Err(_) => Said::Closed,
        },
        _ => Said::Closed,
    }
}

impl Shim {
    /// Hears a container's first process out.
    pub(super) fn hear_container(&mut self, id: &str) {
        loop {
            let Some(container) = self.containers.get_mut(id) else { return };
            let Some(sync) = &container.sync else { return };
            match listen(sync.as_fd()) {
                Said::Nothing => return,
                Said::Message(ChildMessage::Ready, mut fds) => {
                    if let Some(master) = fds.pop() {
                        container.take_terminal(master);
                    }
                    if let Phase::Making(reply) = container.phase {
                        container.phase = Phase::Created;
                        self.answer(reply, Answer::Ok, vec![]);
                    }
                }
                Said::Message(ChildMessage::Failed { step, error }, _) => {
                    if let Phase::Making(reply) = container.phase {
                        // Before the answer: who has that may use the name again. Its end is that of an orphan.
                        self.containers.remove(id);
                        return self.refuse(reply, &step, &error);
                    }
                    container.sync = None;
                    container.start_error =
                        if step == RUN_STEP { error.clone() } else { format!("{step}: {error}") };
                    if let Phase::Starting(reply) = container.phase {
                        self.refuse(reply, &step, &error);
                    }
                    return;
                }
                Said::Closed => {
                    container.sync = None;
                    // Another runtime's socket ends when that runtime begins.
                    if container.head.handler.is_none() {
                        self.started(id);
                    }
                    return;
                }
            }
        }
    }

    /// Hears an exec's child out.
    pub(super) fn hear_exec(&mut self, number: u64) {
        loop {
            let Some(exec) = self.execs.get_mut(&number) else { return };
            let Some(sync) = &exec.sync else { return };
            match listen(sync.as_fd()) {
                Said::Nothing => return,
                Said::Message(ChildMessage::Ready, fds) => exec.fds.extend(fds),
                Said::Message(ChildMessage::Failed { step, error }, _) => {
                    exec.sync = None;
                    let reply = exec.reply;
                    self.execs.remove(&number);
                    return self.refuse(reply, &step, &error);
                }
                Said::Closed => {
                    exec.sync = None;
                    let (reply, fds) = (exec.reply, std::mem::take(&mut exec.fds));
                    return self.answer(reply, Answer::Exec(number), fds);
                }
            }
        }
    }

    /// Collects every child that has ended.
    pub(super) fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let signal = status.terminating_signal().unwrap_or(0);
            let code = status.exit_status().unwrap_or(128 + signal);
            self.ended(pid.as_raw_nonzero().get(), code, signal);
        }
    }

    fn ended(&mut self, pid: i32, code: i32, signal: i32) {
        if let Some(index) = self.helpers.iter().position(|h| h.pid == pid) {
            let helper = self.helpers.swap_remove(index);
            return self.helper_ended(helper, code);
        }
        let container = self.containers.iter().find(|(_, c)| c.pid == pid && c.is_alive());
        if let Some(id) = container.map(|(id, _)| id.clone()) {
            // What it said before it died comes before its death.
            self.hear_container(&id);
            return self.container_ended(&id, code, signal);
        }
        let exec = self.execs.iter().find(|(_, e)| e.pid == pid).map(|(number, _)| *number);
        if let Some(number) = exec {
            self.hear_exec(number);
            if let Some(exec) = self.execs.remove(&number) {
                self.send(exec.reply.conn, &Message::ExecExited { exec: number, code }, vec![]);
            }
        }
        // Anything else is an orphan that the pod left to its subreaper.
    }

    fn container_ended(&mut self, id: &str, code: i32, signal: i32) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if self.shared_pids {
            container.kill_leftovers();
        }
        let handled = container.head.handler.is_some();
        match container.phase {
            Phase::Making(_) if handled && code == 0 => return self.adopt(id),
            Phase::Making(reply) if handled => {
                self.containers.remove(id);
                return self.not_made(id, reply);
            }
            Phase::Starting(_) if handled => self.started(id),
            Phase::Making(reply) => {
                self.containers.remove(id);
                let how = format!("the first process ended early (code {code}, signal {signal})");
                return self.refuse(reply, "create", &how);
            }
            Phase::Starting(reply) if container.start_error.is_empty() => {
                self.refuse(reply, "start", "the first process ended early");
            }
            _ => {}
        }
        let Some(state) = self.settle(id, code, signal) else { return };
        self.broadcast(&Message::State { container: id.to_owned(), state });
    }
}
