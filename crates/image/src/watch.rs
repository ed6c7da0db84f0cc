//! Tells when `images.json` was replaced, by whichever process: one thread, asleep in the kernel.

use crate::error::ImageError;
use crate::journal;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::inotify;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::watch;

/// Watches a folder as long as it lives.
pub(crate) struct Watch {
    changes: watch::Sender<u64>,
    stop: Arc<OwnedFd>,
}

impl Watch {
    pub(crate) fn start(folder: &Path) -> Result<Watch, ImageError> {
        let error = |e: rustix::io::Errno| ImageError::io("watch", folder)(e.into());
        let notify =
            inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).map_err(error)?;
        inotify::add_watch(&notify, folder, inotify::WatchFlags::MOVED_TO).map_err(error)?;
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).map_err(error)?);
        let (changes, _) = watch::channel(0);
        let (sender, stopped) = (changes.clone(), stop.clone());
        std::thread::Builder::new()
            .name("image-watch".into())
            .spawn(move || run(&notify, &stopped, &sender))
            .map_err(ImageError::io("start a thread to watch", folder))?;
        Ok(Watch { changes, stop })
    }

    /// Counts one more change.
    pub(crate) fn poke(&self) {
        self.changes.send_modify(|n| *n += 1);
    }

    /// Counts changes; the value itself means nothing.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
    }
}

fn run(notify: &OwnedFd, stop: &OwnedFd, changes: &watch::Sender<u64>) {
    let mut space = [MaybeUninit::uninit(); 4096];
    loop {
        let mut fds = [PollFd::new(notify, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return,
            Ok(_) if fds[1].revents().contains(PollFlags::IN) => return,
            Ok(_) => {}
        }
        let mut reader = inotify::Reader::new(notify, &mut space);
        let mut changed = false;
        while let Ok(event) = reader.next() {
            let overflow = event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW);
            changed |=
                overflow || event.file_name().is_some_and(|name| name.to_bytes() == journal::FILE.as_bytes());
        }
        if changed {
            changes.send_modify(|n| *n += 1);
        }
    }
}
