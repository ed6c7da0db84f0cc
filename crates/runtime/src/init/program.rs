//! Finding the program to run, and saying why it cannot be run in the words that runc's users know.

use crate::oci::Process;
use std::convert::Infallible;
use std::ffi::CString;
use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use sys::rustix::fs::{Access, access};

/// Largest `/etc/passwd` that is searched for a home folder.
const PASSWD_MAX: u64 = 1 << 20;

/// `PATH` as `execvp` would see it.
fn search_path(env: &[String]) -> &str {
    env.iter().rev().find_map(|e| e.strip_prefix("PATH=")).unwrap_or("")
}

/// Finds the program for `name`.
///
/// # Errors
/// The message for the user.
fn find(name: &str, env: &[String]) -> Result<PathBuf, String> {
    let why = |path: &Path| -> Option<String> {
        match fs::metadata(path) {
            Err(e) => Some(format!("stat {}: {}", path.display(), plain(&e))),
            Ok(meta) if meta.is_dir() => Some("is a directory".to_owned()),
            Ok(meta) if meta.mode() & 0o111 == 0 || access(path, Access::EXEC_OK).is_err() => {
                Some("permission denied".to_owned())
            }
            Ok(_) => None,
        }
    };
    if name.contains('/') {
        let path = PathBuf::from(name);
        return match why(&path) {
            None => Ok(path),
            Some(why) => Err(format!("exec: \"{name}\": {why}: unknown")),
        };
    }
    let mut denied = false;
    for folder in search_path(env).split(':') {
        let path = Path::new(if folder.is_empty() { "." } else { folder }).join(name);
        match why(&path) {
            None => return Ok(path),
            Some(why) => denied |= why == "permission denied",
        }
    }
    let why =
        if denied && !name.is_empty() { "permission denied" } else { "executable file not found in $PATH" };
    Err(format!("exec: \"{name}\": {why}: unknown"))
}

/// An error in the C library's words, without Rust's "(os error 2)".
pub(super) fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

/// The environment with `HOME` from the container's `/etc/passwd` where it is missing.
fn with_home(process: &Process) -> Vec<String> {
    let mut env = process.env.clone();
    if !env.iter().any(|e| e.starts_with("HOME=")) {
        env.push(format!("HOME={}", home(process.user.uid).unwrap_or_else(|| "/".to_owned())));
    }
    env
}

fn home(uid: u32) -> Option<String> {
    // A fifo in its place must not block us.
    let nonblock = sys::rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = fs::OpenOptions::new().read(true).custom_flags(nonblock).open("/etc/passwd").ok()?;
    file.metadata().ok().filter(fs::Metadata::is_file)?;
    let mut text = String::new();
    file.take(PASSWD_MAX).read_to_string(&mut text).ok()?;
    text.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields.len() >= 6 && fields[2].parse() == Ok(uid) && !fields[5].is_empty())
            .then(|| fields[5].to_owned())
    })
}

/// Replaces this process by the container's program. Returns only to say why not.
pub(super) fn run(process: &Process) -> Result<Infallible, String> {
    let Some(name) = process.args.first() else {
        return Err("no command specified".to_owned());
    };
    let path = find(name, &process.env)?;
    let strings = |list: &[String]| -> Result<Vec<CString>, String> {
        list.iter()
            .map(|s| {
                CString::new(s.as_str()).map_err(|_| format!("exec: \"{name}\": invalid argument: unknown"))
            })
            .collect()
    };
    let (args, env) = (strings(&process.args)?, strings(&with_home(process))?);
    let text = path.to_string_lossy();
    let program = CString::new(text.as_bytes()).map_err(|_| format!("exec: \"{name}\": invalid argument"))?;
    sys::process::exec(&program, &args, &env).map_err(|e| match e.kind() {
        // The file is there: its interpreter is not.
        ErrorKind::NotFound => format!("exec {text}: no such file or directory: unknown"),
        _ if e.raw_os_error() == Some(8) => format!("exec {text}: exec format error: unknown"),
        _ => format!("exec {text}: {}: unknown", plain(&e)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_runc() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        fs::write(at("data"), "x").unwrap();
        let env = [format!("PATH={}", folder.path().display())];
        assert_eq!(
            find("foo", &env).unwrap_err(),
            "exec: \"foo\": executable file not found in $PATH: unknown"
        );
        assert_eq!(find("data", &env).unwrap_err(), "exec: \"data\": permission denied: unknown");
        assert_eq!(
            find("/no/such", &env).unwrap_err(),
            "exec: \"/no/such\": stat /no/such: no such file or directory: unknown"
        );
        let dir = folder.path().display().to_string();
        assert_eq!(find(&dir, &env).unwrap_err(), format!("exec: \"{dir}\": is a directory: unknown"));
        assert!(find("sh", &["PATH=/nowhere:/bin".to_owned()]).is_ok());
    }
}
