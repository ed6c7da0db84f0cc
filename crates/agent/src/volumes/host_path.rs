//! `hostPath`: a file or folder of the node, with a check of its type.

use super::Context;
use crate::config::mounts::MountedVolume;
use k8s_openapi::api::core::v1::Volume;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub(super) fn mount(context: &Context, volume: &Volume) -> Result<MountedVolume, String> {
    let source = volume.host_path.as_ref().ok_or("not a hostPath volume")?;
    let path = context.facts.kubelet.real(Path::new(&source.path));
    ready(&path.to_string_lossy(), source.type_.as_deref())?;
    Ok(MountedVolume { path, ..MountedVolume::default() })
}

/// Makes what the type asks for, and checks it.
pub(super) fn ready(at: &str, kind: Option<&str>) -> Result<(), String> {
    let path = PathBuf::from(at);
    let failed = |what: &str| format!("hostPath type check failed: {at} is not {what}");
    let made = |e: std::io::Error| format!("hostPath {at}: {e}");
    let kind = kind.unwrap_or_default();
    if !path.exists() {
        match kind {
            // Without a type nothing is checked; the runtime makes the folder, as container engines do.
            "" | "DirectoryOrCreate" => {
                fs::DirBuilder::new().recursive(true).mode(0o755).create(&path).map_err(made)?;
            }
            "FileOrCreate" => {
                let mut options = fs::OpenOptions::new();
                options.write(true).create(true).truncate(false).mode(0o644).open(&path).map_err(made)?;
            }
            _ => {}
        }
    }
    let found = fs::metadata(&path).ok().map(|m| m.file_type());
    let is = |test: &dyn Fn(&fs::FileType) -> bool| found.as_ref().is_some_and(test);
    match kind {
        "Directory" | "DirectoryOrCreate" if !is(&fs::FileType::is_dir) => Err(failed("a directory")),
        "File" | "FileOrCreate" if !is(&fs::FileType::is_file) => Err(failed("a file")),
        "Socket" if !is(&|t| t.is_socket()) => Err(failed("a socket file")),
        "CharDevice" if !is(&|t| t.is_char_device()) => Err(failed("a character device")),
        "BlockDevice" if !is(&|t| t.is_block_device()) => Err(failed("a block device")),
        _ => Ok(()),
    }
}
