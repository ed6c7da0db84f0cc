//! IAM, the part that flows around containers need: users with access keys, roles, policies, instance profiles.
//!
//! Identity policies bind users and assumed roles ([`bound`], `crate::policy`); trust policies are kept and not evaluated.
//! Objects of group `iam.gantry.dev`; IAM has no region. Deliberately not here: groups, federation, boundaries.

pub mod bound;
mod common;
mod managed;
mod policies;
mod profiles;
mod role_policies;
mod roles;
mod users;

use super::Parts;
use super::kept::{Kept, Reach};
use crate::operation;
use crate::service::{Call, Operation, Service, Table};
use auth::AccessKeys;
use k8s_schema::{Gvr, gvr};
use serde_json::Value;
use std::sync::Arc;

const POLICIES: Gvr = Gvr::new("iam.gantry.dev", "v1", "policies");
const USERS: Gvr = Gvr::new("iam.gantry.dev", "v1", "users");
const ACCESS_KEYS: Gvr = Gvr::new("iam.gantry.dev", "v1", "accesskeys");
const PROFILES: Gvr = Gvr::new("iam.gantry.dev", "v1", "instanceprofiles");

/// What the operations share.
pub struct State {
    roles: Kept,
    policies: Kept,
    profiles: Kept,
    users: Kept,
    keys: Kept,
    access: Arc<AccessKeys>,
    home: (String, String),
}

impl State {
    /// A call of the home account, where access keys are.
    fn home_call(&self) -> Call {
        Call::own(&self.home.0, &self.home.1, "", Value::Null)
    }
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
    operation!("TagRole", role_policies::tag),
    operation!("UntagRole", role_policies::tag),
    operation!("ListRoleTags", role_policies::list_tags),
    operation!("PutRolePolicy", role_policies::put),
    operation!("GetRolePolicy", role_policies::get),
    operation!("ListRolePolicies", role_policies::list),
    operation!("DeleteRolePolicy", role_policies::delete),
    operation!("AttachRolePolicy", role_policies::attach),
    operation!("DetachRolePolicy", role_policies::detach),
    operation!("ListAttachedRolePolicies", role_policies::list_attached),
    operation!("CreateUser", users::create),
    operation!("GetUser", users::get),
    operation!("ListUsers", users::list),
    operation!("DeleteUser", users::delete),
    operation!("TagUser", role_policies::tag),
    operation!("UntagUser", role_policies::tag),
    operation!("ListUserTags", role_policies::list_tags),
    operation!("CreateAccessKey", users::create_key),
    operation!("ListAccessKeys", users::list_keys),
    operation!("UpdateAccessKey", users::update_key),
    operation!("DeleteAccessKey", users::delete_key),
    operation!("PutUserPolicy", role_policies::put),
    operation!("GetUserPolicy", role_policies::get),
    operation!("ListUserPolicies", role_policies::list),
    operation!("DeleteUserPolicy", role_policies::delete),
    operation!("AttachUserPolicy", role_policies::attach),
    operation!("DetachUserPolicy", role_policies::detach),
    operation!("ListAttachedUserPolicies", role_policies::list_attached),
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
    operation!("UntagPolicy", policies::tag),
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
        users: kept(USERS, "User"),
        keys: kept(ACCESS_KEYS, "AccessKey"),
        access: parts.keys.clone(),
        home: (parts.shared.account.clone(), parts.shared.region.clone()),
    });
    Arc::new(Table { name: "iam", state, operations: OPERATIONS })
}
