//! Who a container runs as: security context, image user, `/etc/passwd` and `/etc/group` of the image.

use super::{ConfigError, ContainerInput};

/// User, group, supplementary groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups, sorted.
    pub groups: Vec<u32>,
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

fn passwd(text: &str) -> impl Iterator<Item = PasswdEntry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(PasswdEntry { name, uid, gid })
    })
}

/// (name, gid, members)
fn groups(text: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or_default()))
    })
}

/// Resolves the identity; refuses root where `runAsNonRoot` asks for it.
pub fn identity(input: &ContainerInput) -> Result<Identity, ConfigError> {
    let own = input.container.spec.security_context.as_ref();
    let pods = input.pod.spec().security_context.as_ref();
    let run_as_user = own.and_then(|s| s.run_as_user).or(pods.and_then(|s| s.run_as_user));
    let run_as_group = own.and_then(|s| s.run_as_group).or(pods.and_then(|s| s.run_as_group));
    let non_root =
        own.and_then(|s| s.run_as_non_root).or(pods.and_then(|s| s.run_as_non_root)).unwrap_or(false);
    let wide = |id: i64| u32::try_from(id).map_err(|_| ConfigError::Config(format!("invalid id {id}")));
    let tasks = input.pod.task.as_ref().and_then(|t| t.containers.get(input.container.name()));
    let named = tasks.map(|n| n.user.as_str()).filter(|u| !u.is_empty()).unwrap_or(&input.image.user);
    let (image_user, image_group) = match named.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (named, None),
    };
    let about = || format!("(pod: {:?}, container: {})", input.pod.full_name(), input.container.name());
    let mut identity = Identity::default();
    let entry = match run_as_user {
        Some(uid) => {
            identity.uid = wide(uid)?;
            if non_root && uid == 0 {
                let text = format!("container's runAsUser breaks non-root policy {}", about());
                return Err(ConfigError::Config(text));
            }
            passwd(input.passwd).find(|e| e.uid == identity.uid)
        }
        None => {
            let entry = by_text(input.passwd, image_user)?;
            let numeric = image_user.parse::<u32>().ok();
            identity.uid = numeric.or(entry.as_ref().map(|e| e.uid)).unwrap_or(0);
            if non_root && numeric.is_none() && !image_user.is_empty() {
                let text = format!(
                    "container has runAsNonRoot and image has non-numeric user ({image_user}), cannot verify user is non-root {}",
                    about()
                );
                return Err(ConfigError::Config(text));
            }
            if non_root && identity.uid == 0 {
                let text = format!("container has runAsNonRoot and image will run as root {}", about());
                return Err(ConfigError::Config(text));
            }
            entry
        }
    };
    identity.gid = match (run_as_group, image_group) {
        (Some(gid), _) => wide(gid)?,
        (None, Some(group)) if run_as_user.is_none() => group_id(input.group, group)?,
        _ => entry.as_ref().map_or(0, |e| e.gid),
    };
    let strict = pods.and_then(|s| s.supplemental_groups_policy.as_deref()) == Some("Strict");
    let mut extra = Vec::new();
    if let Some(entry) = entry.filter(|_| !strict) {
        let member = |(_, _, members): &(&str, u32, &str)| members.split(',').any(|m| m == entry.name);
        extra.extend(groups(input.group).filter(member).map(|(_, gid, _)| gid));
    }
    for gid in pods.and_then(|s| s.supplemental_groups.as_ref()).into_iter().flatten() {
        extra.push(wide(*gid)?);
    }
    if let Some(gid) = pods.and_then(|s| s.fs_group) {
        extra.push(wide(gid)?);
    }
    // Being in the first group must not be a way around what the file system denies that group.
    extra.push(identity.gid);
    extra.sort_unstable();
    extra.dedup();
    identity.groups = extra;
    Ok(identity)
}

fn by_text<'a>(text: &'a str, user: &str) -> Result<Option<PasswdEntry<'a>>, ConfigError> {
    if user.is_empty() {
        return Ok(passwd(text).find(|e| e.uid == 0));
    }
    if let Ok(uid) = user.parse::<u32>() {
        return Ok(passwd(text).find(|e| e.uid == uid));
    }
    let found = passwd(text).find(|e| e.name == user);
    found.map(Some).ok_or_else(|| {
        ConfigError::Create(format!("unable to find user {user}: no matching entries in passwd file"))
    })
}

fn group_id(text: &str, group: &str) -> Result<u32, ConfigError> {
    if let Ok(gid) = group.parse() {
        return Ok(gid);
    }
    let found = groups(text).find(|(name, _, _)| *name == group).map(|(_, gid, _)| gid);
    found.ok_or_else(|| {
        ConfigError::Create(format!("unable to find group {group}: no matching entries in group file"))
    })
}
