//! Who holds a port: so that "address in use" can name the process.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::path::PathBuf;

/// A port that Gantry wants and cannot have.
#[derive(Debug, PartialEq, Eq)]
pub struct Taken {
    /// The port.
    pub port: u16,
    /// `nginx (pid 12)`, or what is known instead.
    pub holder: String,
}

/// Which of these addresses cannot be listened on now.
pub fn taken(wanted: &[(Ipv4Addr, u16)]) -> Vec<Taken> {
    let free = |ip: Ipv4Addr, port| TcpListener::bind(SocketAddrV4::new(ip, port)).is_ok();
    let taken = wanted.iter().filter(|(ip, port)| !free(*ip, *port));
    taken.map(|&(_, port)| Taken { port, holder: holder(port).unwrap_or("another process".into()) }).collect()
}

/// The process that listens on a TCP port, as `/proc` tells it.
fn holder(port: u16) -> Option<String> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .find_map(|f| listener_inode(&fs::read_to_string(f).ok()?, port))?;
    let wanted = PathBuf::from(format!("socket:[{inode}]"));
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Ok(pid) = process.file_name().to_string_lossy().parse::<u32>() else { continue };
        let Ok(fds) = fs::read_dir(process.path().join("fd")) else { continue };
        if fds.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target == wanted)) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("{} (pid {pid})", name.trim()));
        }
    }
    None
}

/// The inode of the socket that listens on `port`, from a table in the form of `/proc/net/tcp`.
fn listener_inode(table: &str, port: u16) -> Option<u64> {
    const LISTEN: &str = "0A";
    table.lines().skip(1).find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let (_, local_port) = columns.get(1)?.rsplit_once(':')?;
        let matches = u16::from_str_radix(local_port, 16) == Ok(port) && *columns.get(3)? == LISTEN;
        matches.then(|| columns.get(9)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_names_its_holder() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let taken = taken(&[(Ipv4Addr::LOCALHOST, port)]);
        assert_eq!(taken.len(), 1);
        assert!(taken[0].holder.contains(&format!("pid {}", std::process::id())), "{taken:?}");
        drop(listener);
        assert_eq!(super::taken(&[(Ipv4Addr::LOCALHOST, port)]), []);
    }
}
