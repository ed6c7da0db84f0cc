//! IAM, the part that flows around containers need: roles, policies, instance profiles, as documents that are kept and
//! given back. Nothing is enforced by them yet.
//!
//! Objects of group `iam.gantry.dev`; IAM has no region. Deliberately not here: users, groups, federation.

mod common;
mod managed;
mod policies;
mod profiles;
mod role_policies;
mod roles;

use super::Parts;
use super::kept::{Kept, Reach};
use crate::operation;
use crate::service::{Operation, Service, Table};
use k8s_schema::{Gvr, gvr};
use std::sync::Arc;

const POLICIES: Gvr = Gvr::new("iam.gantry.dev", "v1", "policies");
const PROFILES: Gvr = Gvr::new("iam.gantry.dev", "v1", "instanceprofiles");

/// What the operations share.
pub struct State {
    roles: Kept,
    policies: Kept,
    profiles: Kept,
}

const OPERATIONS: &[Operation<State>] = &[
    operation!("CreateRole", roles::create),
    operation!("CreateServiceLinkedRole", roles::create_service_linked),
    operation!("GetRole", roles::get),
    operation!("ListRoles", roles::list),
    operation!("UpdateRole", roles::update),
    operation!("UpdateRoleDescription", roles::update_description),
    operation!("UpdateAssumeRolePolicy", roles::update_trust),
    operation!("DeleteRole", roles::delete),
    operation!("TagRole", roles::tag),
    operation!("UntagRole", roles::untag),
    operation!("ListRoleTags", roles::list_tags),
    operation!("PutRolePolicy", role_policies::put),
    operation!("GetRolePolicy", role_policies::get),
    operation!("ListRolePolicies", role_policies::list),
    operation!("DeleteRolePolicy", role_policies::delete),
    operation!("AttachRolePolicy", role_policies::attach),
    operation!("DetachRolePolicy", role_policies::detach),
    operation!("ListAttachedRolePolicies", role_policies::list_attached),
    operation!("CreatePolicy", policies::create),
    operation!("GetPolicy", policies::get),
    operation!("ListPolicies", policies::list),
    operation!("DeletePolicy", policies::delete),
    operation!("CreatePolicyVersion", policies::create_version),
    operation!("GetPolicyVersion", policies::get_version),
    operation!("ListPolicyVersions", policies::list_versions),
    operation!("SetDefaultPolicyVersion", policies::set_default),
    operation!("DeletePolicyVersion", policies::delete_version),
    operation!("ListEntitiesForPolicy", policies::entities),
    operation!("TagPolicy", policies::tag),
    operation!("UntagPolicy", policies::untag),
    operation!("ListPolicyTags", policies::list_tags),
    operation!("CreateInstanceProfile", profiles::create),
    operation!("GetInstanceProfile", profiles::get),
    operation!("ListInstanceProfiles", profiles::list),
    operation!("ListInstanceProfilesForRole", profiles::list_for_role),
    operation!("AddRoleToInstanceProfile", profiles::add_role),
    operation!("RemoveRoleFromInstanceProfile", profiles::remove_role),
    operation!("DeleteInstanceProfile", profiles::delete),
];

/// The service.
pub fn service(parts: &Parts) -> Arc<dyn Service> {
    let kept = |gvr, kind| Kept::new(&parts.shared, gvr, kind, Reach::Global);
    let state = Arc::new(State {
        roles: kept(gvr::IAM_ROLES, "Role"),
        policies: kept(POLICIES, "Policy"),
        profiles: kept(PROFILES, "InstanceProfile"),
    });
    Arc::new(Table { name: "iam", state, operations: OPERATIONS })
}
