//! What to do about a claim, and about a volume. Pure; the words are upstream's.

use super::LOCAL;
use client::events::EventType;
use sched::volumes::{Catalog, Claim, Volume, find_match};

/// An event: type, reason, message.
pub type Note = (EventType, &'static str, String);

/// What to do about a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForClaim {
    /// It waits.
    Wait(Option<Note>),
    /// It gets this volume, or keeps it.
    Bind(String),
    /// This controller makes a volume.
    Provision,
    /// Somebody else is to make one.
    Ask(String),
    /// Its volume has gone.
    Lose(Note),
}

fn normal(reason: &'static str, message: impl Into<String>) -> ForClaim {
    ForClaim::Wait(Some((EventType::Normal, reason, message.into())))
}

fn warning(reason: &'static str, message: impl Into<String>) -> ForClaim {
    ForClaim::Wait(Some((EventType::Warning, reason, message.into())))
}

/// Looks at a claim.
pub fn for_claim(claim: &Claim, catalog: &Catalog) -> ForClaim {
    let named = catalog.volumes.get(&claim.volume);
    match named {
        _ if claim.deleting && !claim.bound => ForClaim::Wait(None),
        _ if claim.volume.is_empty() => unnamed(claim, catalog),
        Some(v) if claim.bound && (v.claim.is_none() || v.is_for(claim)) => ForClaim::Bind(v.name.clone()),
        Some(_) if claim.bound => ForClaim::Lose((
            EventType::Warning,
            "ClaimMisbound",
            "Two claims are bound to the same volume, this one is bound incorrectly".into(),
        )),
        None if claim.bound => ForClaim::Lose((
            EventType::Warning,
            "ClaimLost",
            "Bound claim has lost its PersistentVolume. Data on the volume is lost!".into(),
        )),
        None => ForClaim::Wait(None),
        Some(v) => claimed(claim, v),
    }
}

/// A claim that names a volume.
fn claimed(claim: &Claim, volume: &Volume) -> ForClaim {
    let name = &volume.name;
    if volume.claim.is_some() && !volume.is_for(claim) {
        return warning("FailedBinding", format!("volume \"{name}\" already bound to a different claim."));
    }
    let odds = [
        (volume.shape.block != claim.shape.block, "volumeMode"),
        (volume.shape.class != claim.shape.class, "storageClassName"),
        (!claim.shape.modes.is_subset(&volume.shape.modes), "accessMode"),
    ];
    if let Some((_, what)) = odds.iter().find(|(odd, _)| *odd) {
        let text = format!("Cannot bind to requested volume \"{name}\": incompatible {what}");
        return warning("VolumeMismatch", text);
    }
    if volume.shape.bytes < claim.shape.bytes {
        let text = format!("Cannot bind to requested volume \"{name}\": requested PV is too small");
        return warning("VolumeMismatch", text);
    }
    ForClaim::Bind(name.clone())
}

fn unnamed(claim: &Claim, catalog: &Catalog) -> ForClaim {
    let waits = catalog.waits(claim) && claim.node.is_none();
    if let Some(volume) = find_match(claim, catalog.volumes.values(), None, waits) {
        return ForClaim::Bind(volume.name.clone());
    }
    if waits {
        let text = "waiting for first consumer to be created before binding";
        return normal("WaitForFirstConsumer", text);
    }
    let class = &claim.shape.class;
    if class.is_empty() {
        let text = "no persistent volumes available for this claim and no storage class is set";
        return normal("FailedBinding", text);
    }
    let Some(found) = catalog.classes.get(class) else {
        return warning("ProvisioningFailed", format!("storageclass.storage.k8s.io \"{class}\" not found"));
    };
    let failed = |why: &str| {
        warning(
            "ProvisioningFailed",
            format!("failed to provision volume with StorageClass \"{class}\": {why}"),
        )
    };
    match found.provisioner.as_str() {
        LOCAL if claim.selector.is_some() => failed("claim Selector is not supported"),
        LOCAL if claim.shape.block => failed("block volume provisioning is not supported"),
        LOCAL => ForClaim::Provision,
        name if name.starts_with("kubernetes.io/") => {
            warning("ProvisioningFailed", format!("no volume plugin matched name: {name}"))
        }
        name => ForClaim::Ask(name.into()),
    }
}

/// What to do about a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForVolume {
    /// It has this phase; its claim needs a look.
    Is(&'static str),
    /// Its claim is about to be bound to it.
    LookAtClaim,
    /// Its claim has gone (or has another volume): see its reclaim policy.
    Release,
    /// Its claim has another volume, and nobody made this one for it: free again.
    Free,
}

/// Looks at a volume; `claim` is the one that it names, if that is there.
pub fn for_volume(volume: &Volume, claim: Option<&Claim>, provisioned: bool) -> ForVolume {
    let Some((_, uid)) = &volume.claim else { return ForVolume::Is("Available") };
    let ours = claim.filter(|c| uid.is_empty() || c.uid == *uid);
    match ours {
        _ if uid.is_empty() => ForVolume::Is("Available"),
        None => ForVolume::Release,
        Some(c) if c.volume.is_empty() => ForVolume::LookAtClaim,
        Some(c) if c.volume == volume.name => ForVolume::Is("Bound"),
        Some(_) if provisioned => ForVolume::Release,
        Some(_) => ForVolume::Free,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sched::volumes::{BIND_COMPLETED, Class};
    use serde_json::{Value, json};

    fn claim(change: Value) -> Claim {
        let mut value = json!({"metadata": {"name": "c", "namespace": "n", "uid": "u"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
        machinery::patch::merge(&mut value, &change);
        Claim::read(&value)
    }

    fn catalog(claim_of_volume: Value) -> Catalog {
        let mut catalog = Catalog::default();
        let volume = json!({"metadata": {"name": "v"}, "status": {"phase": "Available"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "2Gi"}, "claimRef": claim_of_volume}});
        catalog.volumes.insert("v".into(), Volume::read(&volume));
        for (name, provisioner, mode) in [
            ("standard", LOCAL, "WaitForFirstConsumer"),
            ("now", LOCAL, "Immediate"),
            ("other", "example.com/disk", "Immediate"),
            ("none", sched::volumes::NO_PROVISIONER, "Immediate"),
        ] {
            let class = json!({"provisioner": provisioner, "volumeBindingMode": mode});
            catalog.classes.insert(name.into(), Class::read(&class));
        }
        catalog
    }

    fn of_class(name: &str) -> Value {
        json!({"spec": {"storageClassName": name}})
    }

    fn reason(plan: ForClaim) -> &'static str {
        match plan {
            ForClaim::Wait(Some((_, reason, _))) | ForClaim::Lose((_, reason, _)) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn claims_without_a_volume() {
        let free = catalog(json!(null));
        assert_eq!(for_claim(&claim(json!({})), &free), ForClaim::Bind("v".into()));
        let taken = catalog(json!({"namespace": "n", "name": "d", "uid": "x"}));
        assert_eq!(reason(for_claim(&claim(json!({})), &taken)), "FailedBinding");
        assert_eq!(reason(for_claim(&claim(of_class("standard")), &free)), "WaitForFirstConsumer");
        let chosen = json!({"metadata": {"annotations": {sched::volumes::SELECTED_NODE: "a"}},
            "spec": {"storageClassName": "standard"}});
        assert_eq!(for_claim(&claim(chosen), &free), ForClaim::Provision);
        assert_eq!(for_claim(&claim(of_class("now")), &free), ForClaim::Provision);
        assert_eq!(for_claim(&claim(of_class("other")), &free), ForClaim::Ask("example.com/disk".into()));
        assert_eq!(reason(for_claim(&claim(of_class("none")), &free)), "ProvisioningFailed");
        assert_eq!(reason(for_claim(&claim(of_class("missing")), &free)), "ProvisioningFailed");
        let going = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        assert_eq!(for_claim(&claim(going), &free), ForClaim::Wait(None));
    }

    #[test]
    fn claims_with_a_volume() {
        let own = json!({"namespace": "n", "name": "c"});
        let named = |change: Value| {
            let mut value = json!({"spec": {"volumeName": "v"}});
            machinery::patch::merge(&mut value, &change);
            claim(value)
        };
        assert_eq!(for_claim(&named(json!({})), &catalog(own)), ForClaim::Bind("v".into()));
        let others = json!({"namespace": "n", "name": "d", "uid": "x"});
        assert_eq!(reason(for_claim(&named(json!({})), &catalog(others.clone()))), "FailedBinding");
        let large = json!({"spec": {"resources": {"requests": {"storage": "9Gi"}}}});
        assert_eq!(reason(for_claim(&named(large), &catalog(json!(null)))), "VolumeMismatch");
        let bound = json!({"metadata": {"annotations": {BIND_COMPLETED: "yes"}}});
        assert_eq!(reason(for_claim(&named(bound.clone()), &catalog(others))), "ClaimMisbound");
        assert_eq!(reason(for_claim(&named(bound), &Catalog::default())), "ClaimLost");
        assert_eq!(for_claim(&named(json!({})), &Catalog::default()), ForClaim::Wait(None));
    }

    #[test]
    fn volumes() {
        let of = |reference: Value| catalog(reference).volumes.remove("v").unwrap();
        let own = of(json!({"namespace": "n", "name": "c", "uid": "u"}));
        let bound = claim(json!({"spec": {"volumeName": "v"}}));
        let elsewhere = claim(json!({"spec": {"volumeName": "w"}}));
        let anew = claim(json!({"metadata": {"uid": "new"}}));
        assert_eq!(for_volume(&of(json!(null)), None, false), ForVolume::Is("Available"));
        let kept = of(json!({"namespace": "n", "name": "c"}));
        assert_eq!(for_volume(&kept, None, false), ForVolume::Is("Available"));
        for (claim, provisioned, want) in [
            (Some(&bound), true, ForVolume::Is("Bound")),
            (Some(&claim(json!({}))), true, ForVolume::LookAtClaim),
            (None, false, ForVolume::Release),
            (Some(&anew), false, ForVolume::Release),
            (Some(&elsewhere), true, ForVolume::Release),
            (Some(&elsewhere), false, ForVolume::Free),
        ] {
            assert_eq!(for_volume(&own, claim, provisioned), want);
        }
    }
}
