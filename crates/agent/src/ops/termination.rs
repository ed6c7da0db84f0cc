//! The termination message of a container: its file, or the end of its log.

use crate::facts::NodeFacts;
use crate::pod::PodView;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Upstream's limits.
const FILE_MAX: u64 = 4096;
const LOG_BYTES_MAX: usize = 2048;
const LOG_LINES_MAX: usize = 80;

/// Reads the message that a container left; blocking.
pub fn message(facts: &NodeFacts, pod: &PodView, name: &str, attempt: u32, failed: bool) -> String {
    let file = facts.termination_log(pod.uid(), name, attempt);
    let mut bytes = Vec::new();
    if let Ok(file) = std::fs::File::open(&file) {
        let _ = file.take(FILE_MAX).read_to_end(&mut bytes);
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let policy = pod.container(name).and_then(|c| c.spec.termination_message_policy.as_deref());
    if !text.is_empty() || !failed || policy != Some("FallbackToLogsOnError") {
        return text;
    }
    let log =
        facts.log_folder(pod.namespace(), pod.name(), pod.uid()).join(name).join(format!("{attempt}.log"));
    log_tail(&log)
}

/// The last lines of a CRI log, without stamps.
fn log_tail(path: &Path) -> String {
    // Stamps take their share, so more is read than shown.
    const READ: i64 = 4 * LOG_BYTES_MAX as i64;
    let Ok(mut file) = std::fs::File::open(path) else { return String::new() };
    let length = file.metadata().map_or(0, |m| i64::try_from(m.len()).unwrap_or(0));
    let _ = file.seek(SeekFrom::End(-length.min(READ)));
    let mut bytes = Vec::new();
    let _ = file.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes);
    let mut lines: Vec<&str> = text.lines().collect();
    if length > READ && !lines.is_empty() {
        lines.remove(0);
    }
    let skip = lines.len().saturating_sub(LOG_LINES_MAX);
    let mut out = String::new();
    for line in &lines[skip..] {
        let mut parts = line.splitn(4, ' ');
        let (tag, content) = (parts.nth(2).unwrap_or("F"), parts.next().unwrap_or_default());
        out.push_str(content);
        if tag != "P" {
            out.push('\n');
        }
    }
    let from = out.len().saturating_sub(LOG_BYTES_MAX);
    let from = (from..=out.len()).find(|i| out.is_char_boundary(*i)).unwrap_or(0);
    out[from..].to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::tests::facts;
    use crate::pod::tests::pod;
    use serde_json::json;

    #[test]
    fn file_first_then_log_when_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let facts = facts(dir.path());
        let view = pod(
            json!({"containers": [{"name": "a", "image": "i", "terminationMessagePolicy": "FallbackToLogsOnError"}]}),
        );
        let log = facts.log_folder("n", "p", "u").join("a");
        std::fs::create_dir_all(&log).unwrap();
        std::fs::write(log.join("0.log"), "T stdout P one \nT stdout F two\nT stderr F three\n").unwrap();
        assert_eq!(message(&facts, &view, "a", 0, true), "one two\nthree\n");
        assert_eq!(message(&facts, &view, "a", 0, false), "");
        let file = facts.termination_log("u", "a", 0);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, "bye").unwrap();
        assert_eq!(message(&facts, &view, "a", 0, true), "bye");
    }
}
