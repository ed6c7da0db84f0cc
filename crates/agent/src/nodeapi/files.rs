//! `/logs/`: the files below the node's log folder, as a plain file server shows them.
//!
//! Nothing outside the folder can be reached: links are resolved as if it were the root.

use super::http::{Body, Sink, not_found, plain, streamed, typed};
use bytes::Bytes;
use http::{Response, StatusCode};
use machinery::status::ApiError;
use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

/// Pieces in which a file is sent.
const PIECE: usize = 64 << 10;
/// Entries of a folder that are shown.
const ENTRIES_MAX: usize = 10_000;

/// What an answer is made of.
enum Found {
    Folder(Vec<String>),
    File(std::fs::File),
}

fn find(root: &Path, path: &str) -> std::io::Result<Found> {
    let read = OFlags::RDONLY | OFlags::CLOEXEC;
    let root = openat(CWD, root, read | OFlags::DIRECTORY, Mode::empty())?;
    let path = if path.is_empty() { "." } else { path };
    // A pipe without a writer must not hold anybody up.
    let flags = read | OFlags::NONBLOCK | OFlags::NOCTTY;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = openat2(&root, path, flags, Mode::empty(), inside)?;
    match FileType::from_raw_mode(fstat(&file)?.st_mode) {
        FileType::Directory => folder(&file).map(Found::Folder),
        FileType::RegularFile => Ok(Found::File(file.into())),
        _ => Err(std::io::ErrorKind::NotFound.into()),
    }
}

fn folder(file: &OwnedFd) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(file)?.take(ENTRIES_MAX) {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy();
        if name != "." && name != ".." {
            let slash = if entry.file_type() == FileType::Directory { "/" } else { "" };
            names.push(format!("{name}{slash}"));
        }
    }
    names.sort();
    Ok(names)
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// Answers for a path below the folder. The second part of the answer is what sends a file's contents.
pub(super) async fn answer(
    root: &'static str,
    path: String,
) -> Result<(Response<Body>, Option<impl FnOnce() + Send>), ApiError> {
    let found = tokio::task::spawn_blocking(move || find(Path::new(root), &path)).await;
    match found.map_err(ApiError::internal)? {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Ok((plain(StatusCode::FORBIDDEN, "403 Forbidden"), None))
        }
        Err(_) => Err(not_found()),
        Ok(Found::Folder(names)) => {
            let line = |name: &String| format!("<a href=\"{0}\">{0}</a>\n", escaped(name));
            let page = format!("<pre>\n{}</pre>\n", names.iter().map(line).collect::<String>());
            Ok((typed(StatusCode::OK, "text/html; charset=utf-8", page), None))
        }
        Ok(Found::File(file)) => {
            let (out, body) = streamed();
            Ok((body, Some(move || send(file, &out))))
        }
    }
}

/// Sends a file as it is now; blocking.
fn send(mut file: std::fs::File, out: &Sink) {
    loop {
        let mut piece = vec![0; PIECE];
        match file.read(&mut piece) {
            Ok(n) if n > 0 => {
                piece.truncate(n);
                if out.blocking_send(Bytes::from(piece)).is_err() {
                    return;
                }
            }
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("log");
        std::fs::create_dir_all(root.join("pods")).unwrap();
        std::fs::write(root.join("a<b"), "text").unwrap();
        std::fs::write(folder.path().join("secret"), "s").unwrap();
        std::os::unix::fs::symlink("../secret", root.join("out")).unwrap();
        std::os::unix::fs::symlink("/a<b", root.join("in")).unwrap();
        let listed = match find(&root, "") {
            Ok(Found::Folder(names)) => names,
            _ => panic!("a folder"),
        };
        assert_eq!(listed, ["a<b", "in", "out", "pods/"]);
        for path in ["out", "../secret", "pods/../../secret", "none"] {
            assert!(find(&root, path).is_err(), "{path}");
        }
        let Ok(Found::File(mut file)) = find(&root, "in") else { panic!("a file") };
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), escaped("a<b").as_str()), ("text", "a&lt;b"));
    }
}
