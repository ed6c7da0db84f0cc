//! Images made from Debian packages: real nginx and redis without any registry.
//!
//! Packages are fetched once into a cache folder by apt, unpacked without being installed, and packed with a static
//! busybox as shell.

use crate::cluster::run;
use crate::image::ImageBuilder;
use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How an image is made.
pub struct Recipe {
    /// `nginx`: the command-line name, and the file's.
    pub name: &'static str,
    /// Names the image is loaded under.
    pub tags: &'static [&'static str],
    packages: &'static [&'static str],
    files: &'static [(&'static str, &'static str)],
    dirs: &'static [&'static str],
    command: &'static [&'static str],
    port: &'static str,
}

/// All recipes.
pub const RECIPES: &[Recipe] = &[
    Recipe {
        name: "nginx",
        tags: &["nginx:1.7.9", "nginx:latest", "nginx:1.9.1", "nginx:1.14.2", "nginx:1.16.1", "nginx:1.25"],
        packages: &["nginx", "nginx-common", "libc6", "libcrypt1", "libpcre2-8-0", "libssl3", "zlib1g"],
        files: &[
            (
                "etc/nginx/nginx.conf",
                "user www-data;\nworker_processes 1;\npid /run/nginx.pid;\nerror_log /dev/stderr warn;\n\
                 events { worker_connections 512; }\nhttp {\n  include mime.types;\n  access_log /dev/stdout;\n  \
                 include /etc/nginx/conf.d/*.conf;\n}\n",
            ),
            (
                "etc/nginx/conf.d/default.conf",
                "server {\n  listen 80;\n  root /usr/share/nginx/html;\n  location / { index index.html; }\n}\n",
            ),
        ],
        dirs: &["var/log/nginx", "var/lib/nginx", "run"],
        command: &["/usr/sbin/nginx", "-g", "daemon off;"],
        port: "80/tcp",
    },
    Recipe {
        name: "redis",
        tags: &["redis:latest", "redis:7", "redis:6.0.5"],
        packages: &[
            "redis-server",
            "redis-tools",
            "libc6",
            "libatomic1",
            "libhiredis0.14",
            "libjemalloc2",
            "liblua5.1-0",
            "liblzf1",
            "libssl3",
            "libsystemd0",
            "libgcc-s1",
            "libstdc++6",
            "liblzma5",
            "liblz4-1",
            "libzstd1",
            "libcap2",
            "libgcrypt20",
            "libgpg-error0",
        ],
        files: &[],
        dirs: &["data", "run"],
        command: &["/usr/bin/redis-server", "--protected-mode", "no"],
        port: "6379/tcp",
    },
];

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n";
const GROUP: &str = "root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n";

/// The docker-archive of a recipe, made once in `folder` and found there afterwards.
pub fn archive(recipe: &Recipe, folder: &Path) -> Result<PathBuf> {
    let done = folder.join(format!("{}.tar", recipe.name));
    if done.exists() {
        return Ok(done);
    }
    let debs = folder.join("debs").join(recipe.name);
    fs::create_dir_all(&debs)?;
    let root = tempfile::tempdir_in(folder)?;
    run(Command::new("apt-get").args(["download", "-qq"]).args(recipe.packages).current_dir(&debs))
        .context("apt-get update may be due")?;
    for deb in fs::read_dir(&debs)?.flatten() {
        run(Command::new("dpkg").arg("-x").arg(deb.path()).arg(root.path()))?;
    }
    let mut builder = ImageBuilder::busybox(recipe.tags[0]);
    for tag in &recipe.tags[1..] {
        builder = builder.also_named(tag);
    }
    builder = add_tree(builder, root.path(), Path::new(""))?;
    for dir in recipe.dirs {
        builder = builder.dir(dir, 0o755);
    }
    for (path, text) in recipe.files.iter().chain([&("etc/passwd", PASSWD), &("etc/group", GROUP)]) {
        builder = builder.file(path, text.as_bytes(), 0o644);
    }
    let partial = folder.join(format!("{}.tar.new", recipe.name));
    builder.cmd(recipe.command.iter().copied()).expose(recipe.port).write_docker_archive(&partial);
    fs::rename(&partial, &done)?;
    Ok(done)
}

/// Adds an unpacked package tree; documentation and translations are left out.
fn add_tree(mut builder: ImageBuilder, root: &Path, below: &Path) -> Result<ImageBuilder> {
    const LEFT_OUT: [&str; 4] = ["usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/lintian"];
    let mut entries: Vec<_> = fs::read_dir(root.join(below))?.collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = below.join(entry.file_name());
        let name = path.to_str().context("package paths are UTF-8")?;
        let meta = entry.metadata()?;
        if LEFT_OUT.contains(&name) {
            continue;
        }
        builder = if meta.is_symlink() {
            let target = fs::read_link(entry.path())?;
            builder.symlink(name, target.to_str().context("link targets are UTF-8")?)
        } else if meta.is_dir() {
            add_tree(builder.dir(name, meta.permissions().mode() & 0o7777), root, &path)?
        } else {
            builder.file(name, &fs::read(entry.path())?, meta.permissions().mode() & 0o7777)
        };
    }
    Ok(builder)
}
