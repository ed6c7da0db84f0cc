//! Mount options as words → what the mount calls want. Pure; one table.

use std::collections::BTreeMap;
use sys::mount::{MS_PRIVATE, MS_SHARED, MS_SLAVE, MS_UNBINDABLE};

/// `MOUNT_ATTR_*` of `linux/mount.h`.
pub(super) mod attr {
    pub(crate) const RDONLY: u64 = 0x1;
    pub(crate) const NOSUID: u64 = 0x2;
    pub(crate) const NODEV: u64 = 0x4;
    pub(crate) const NOEXEC: u64 = 0x8;
    pub(crate) const ATIME_MASK: u64 = 0x70;
    pub(crate) const NOATIME: u64 = 0x10;
    pub(crate) const STRICTATIME: u64 = 0x20;
    pub(crate) const NODIRATIME: u64 = 0x80;
    pub(crate) const NOSYMFOLLOW: u64 = 0x20_0000;
}

/// Attributes to set and to clear.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Attrs {
    pub set: u64,
    pub clear: u64,
}

/// One mount's options, sorted out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    /// A bind mount.
    pub bind: bool,
    /// With the mounts below the source.
    pub bind_recursive: bool,
    /// For the mount itself.
    pub attrs: Attrs,
    /// For it and all below it (`rro` …).
    pub recursive: Attrs,
    /// Propagation, `MS_*`; 0: private.
    pub propagation: u64,
    /// Propagation of the mounts below as well.
    pub propagation_recursive: bool,
    /// Gantry's own: mount this path below the source, resolved inside it (`x-gantry.subpath=`).
    pub subpath: Option<String>,
    /// Gantry's own: the layers of an image that is mounted, the topmost first (`x-gantry.lower=`, once each).
    pub lowers: Vec<std::path::PathBuf>,
    /// The rest, for the file system; an empty value is a flag.
    pub data: BTreeMap<String, String>,
}

/// Word, bits to set, bits to clear. With an `r` before it: recursive.
const ATTRIBUTES: &[(&str, u64, u64)] = &[
    ("ro", attr::RDONLY, 0),
    ("rw", 0, attr::RDONLY),
    ("nosuid", attr::NOSUID, 0),
    ("suid", 0, attr::NOSUID),
    ("nodev", attr::NODEV, 0),
    ("dev", 0, attr::NODEV),
    ("noexec", attr::NOEXEC, 0),
    ("exec", 0, attr::NOEXEC),
    ("noatime", attr::NOATIME, attr::ATIME_MASK),
    ("relatime", 0, attr::ATIME_MASK),
    ("atime", 0, attr::ATIME_MASK),
    ("norelatime", attr::STRICTATIME, attr::ATIME_MASK),
    ("strictatime", attr::STRICTATIME, attr::ATIME_MASK),
    ("nostrictatime", 0, attr::ATIME_MASK),
    ("nodiratime", attr::NODIRATIME, 0),
    ("diratime", 0, attr::NODIRATIME),
    ("nosymfollow", attr::NOSYMFOLLOW, 0),
    ("symfollow", 0, attr::NOSYMFOLLOW),
];

const PROPAGATION: &[(&str, u64)] =
    &[("private", MS_PRIVATE), ("slave", MS_SLAVE), ("shared", MS_SHARED), ("unbindable", MS_UNBINDABLE)];

/// Accepted and without effect here.
const IGNORED: &[&str] =
    &["defaults", "remount", "async", "auto", "noauto", "nofail", "_netdev", "idmap", "ridmap"];

pub(super) const SUBPATH: &str = "x-gantry.subpath=";
const LOWER: &str = "x-gantry.lower=";

impl Attrs {
    fn add(&mut self, set: u64, clear: u64) {
        self.set = (self.set & !clear) | set;
        self.clear = (self.clear & !set) | clear;
    }
}

/// Sorts words out; of two that contradict each other the later wins.
pub(super) fn parse(words: &[String]) -> Options {
    let mut out = Options::default();
    for word in words {
        let attribute = |w: &str| ATTRIBUTES.iter().find(|(name, ..)| *name == w);
        let propagation = |w: &str| PROPAGATION.iter().find(|(name, _)| *name == w);
        let shorter = word.strip_prefix('r');
        if let Some((_, set, clear)) = attribute(word) {
            out.attrs.add(*set, *clear);
        } else if let Some((_, set, clear)) = shorter.and_then(attribute) {
            out.recursive.add(*set, *clear);
        } else if let Some((_, bits)) = propagation(word) {
            (out.propagation, out.propagation_recursive) = (*bits, false);
        } else if let Some((_, bits)) = shorter.and_then(propagation) {
            (out.propagation, out.propagation_recursive) = (*bits, true);
        } else if word == "bind" || word == "rbind" {
            out.bind = true;
            out.bind_recursive = word == "rbind";
        } else if let Some(path) = word.strip_prefix(SUBPATH) {
            out.subpath = Some(path.to_owned());
        } else if let Some(path) = word.strip_prefix(LOWER) {
            out.lowers.push(path.into());
        } else if !word.is_empty() && !IGNORED.contains(&word.as_str()) {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            out.data.insert(key.to_owned(), value.to_owned());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &str) -> Options {
        parse(&words.split(',').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn words_find_their_place() {
        let o = of("rbind,rprivate,ro,nosuid,rnoexec,size=64k,x-gantry.subpath=a/b");
        assert!(o.bind && o.bind_recursive && o.propagation_recursive);
        assert_eq!(o.propagation, MS_PRIVATE);
        assert_eq!(o.attrs.set, attr::RDONLY | attr::NOSUID);
        assert_eq!(o.recursive.set, attr::NOEXEC);
        assert_eq!(o.data["size"], "64k");
        assert_eq!(o.subpath.as_deref(), Some("a/b"));
        assert_eq!(of("rro").recursive.set, attr::RDONLY);
    }

    #[test]
    fn later_words_win() {
        assert_eq!(of("ro,rw").attrs, Attrs { set: 0, clear: attr::RDONLY });
        assert_eq!(of("noatime,strictatime").attrs.set, attr::STRICTATIME);
        // `relatime` and `rw` begin with an r and are not recursive forms.
        assert_eq!(of("relatime,rw").recursive, Attrs::default());
    }
}
