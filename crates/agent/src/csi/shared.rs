//! The kubelet's folder as a mount that is shared: what drivers mount in their containers arrives on the node, and from
//! there in other pods.
//!
//! Made before the first pod: the mount namespaces of pods listen to mounts that were there when they were made, and
//! where the file system below is private, a later one would stay unseen.

use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};
use std::io;
use std::path::{Path, PathBuf};

/// One line of `/proc/self/mountinfo`: the mount point, and whether it is shared.
fn mounts(text: &str) -> Vec<(PathBuf, bool)> {
    let one = |line: &str| {
        let (head, _) = line.split_once(" - ")?;
        let mut words = head.split(' ').skip(4);
        let path = unescaped(words.next()?);
        Some((path, words.any(|w| w.starts_with("shared:"))))
    };
    text.lines().filter_map(one).collect()
}

/// Spaces and the like stand as octal numbers.
fn unescaped(text: &str) -> PathBuf {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    escapes.iter().fold(text.to_string(), |t, (from, to)| t.replace(from, to)).into()
}

fn current() -> io::Result<Vec<(PathBuf, bool)>> {
    Ok(mounts(&std::fs::read_to_string("/proc/self/mountinfo")?))
}

/// Makes the folder, and the mount that it is on shared: by a mount of its own where need be.
pub fn share(root: &Path) -> io::Result<()> {
    std::fs::create_dir_all(root)?;
    let root = root.canonicalize()?;
    let all = current()?;
    // Of mounts at one place the last one counts.
    let holds = |(at, _): &&(PathBuf, bool)| root.starts_with(at);
    let under = all.iter().filter(holds).max_by_key(|(at, _)| at.components().count());
    if under.is_some_and(|(_, shared)| *shared) {
        return Ok(());
    }
    mount_bind(&root, &root)?;
    Ok(mount_change(&root, MountPropagationFlags::SHARED)?)
}

/// Is something mounted right there?
pub fn is_mounted(path: &Path) -> bool {
    let path = path.canonicalize().unwrap_or_else(|_| path.into());
    current().is_ok_and(|all| all.iter().any(|(at, _)| *at == path))
}

/// Takes away what is mounted at or below a folder, in use or not.
pub fn unmount_below(folder: &Path) -> io::Result<()> {
    let Ok(folder) = folder.canonicalize() else { return Ok(()) };
    for (at, _) in current()?.iter().rev().filter(|(at, _)| at.starts_with(&folder)) {
        match unmount(at, UnmountFlags::DETACH) {
            // It went with the one above.
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo() {
        let text = "36 35 98:0 /a /mnt/b\\040c rw,noatime shared:1 - ext4 /dev/x rw\n\
            37 36 0:3 / /p rw master:1 - proc proc rw\n";
        assert_eq!(mounts(text), [("/mnt/b c".into(), true), ("/p".into(), false)]);
    }
}
