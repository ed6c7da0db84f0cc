//! ECS: clusters, task definitions, tasks, container instances and what belongs to them, as objects of our own API.
//!
//! One file a family of operations, one row an operation. What a request may say and what it means is decided by
//! `ecs_model`; here objects are found, written and shown. Reads come from caches, which see this server's own writes
//! at once; every change is a compare-and-swap. Deliberately not here: making tasks run (`ecs`).

mod account_setting;
mod attribute;
mod capacity_provider;
mod cluster;
mod context;
mod external;
mod index;
mod instance;
mod instance_ops;
mod paging;
mod protection;
mod run;
mod service;
mod service_checks;
mod service_deployment;
mod service_tasks;
mod tag;
mod task;
mod task_definition;

use crate::service::{Call, Operation, Outcome, Service, Shared, Table};
use futures_util::future::BoxFuture;
use index::Views;
use std::sync::Arc;
use tokio::sync::OnceCell;

/// What the operations share.
pub struct Ecs {
    shared: Shared,
    /// Started by the first call: who uses no ECS pays for none.
    views: OnceCell<Views>,
}

impl Ecs {
    async fn views(&self) -> &Views {
        self.views.get_or_init(|| Views::start(&self.shared.client)).await
    }
}

/// A row from an `async fn(&Context<'_>) -> Outcome`.
macro_rules! row {
    ($name:literal, $function:path) => {
        $crate::service::Operation {
            name: $name,
            run: |ecs: &$crate::services::ecs::Ecs, call| {
                Box::pin(async move { $function(&ecs.enter(call).await).await })
            },
        }
    };
}
pub(crate) use row;

/// The service.
pub fn service(shared: &Shared) -> Arc<dyn Service> {
    let state = Arc::new(Ecs { shared: shared.clone(), views: OnceCell::new() });
    let table = |operations| Table { name: "ecs", state: state.clone(), operations };
    Arc::new(Whole { public: table(OPERATIONS), own: table(service_tasks::OPERATIONS) })
}

/// AWS's operations, and those of the service scheduler, which are no model's and which nobody is told of.
struct Whole {
    public: Table<Ecs>,
    own: Table<Ecs>,
}

impl Service for Whole {
    fn name(&self) -> &'static str {
        self.public.name()
    }

    fn served(&self) -> Vec<&'static str> {
        self.public.served()
    }

    fn call<'a>(&'a self, call: &'a Call) -> BoxFuture<'a, Outcome> {
        let own = self.own.operations.iter().any(|o| o.name == call.operation);
        if own { self.own.call(call) } else { self.public.call(call) }
    }
}

static OPERATIONS: &[Operation<Ecs>] = &[
    row!("CreateCluster", cluster::create),
    row!("DeleteCluster", cluster::delete),
    row!("DescribeClusters", cluster::describe),
    row!("ListClusters", cluster::list),
    row!("PutClusterCapacityProviders", cluster::put_capacity_providers),
    row!("UpdateCluster", cluster::update),
    row!("UpdateClusterSettings", cluster::update_settings),
    row!("CreateCapacityProvider", capacity_provider::create),
    row!("DeleteCapacityProvider", capacity_provider::delete),
    row!("DescribeCapacityProviders", capacity_provider::describe),
    row!("UpdateCapacityProvider", capacity_provider::update),
    row!("DeleteTaskDefinitions", task_definition::delete),
    row!("DeregisterTaskDefinition", task_definition::deregister),
    row!("DescribeTaskDefinition", task_definition::describe),
    row!("ListTaskDefinitionFamilies", task_definition::list_families),
    row!("ListTaskDefinitions", task_definition::list),
    row!("RegisterTaskDefinition", task_definition::register),
    row!("RunTask", run::run_task),
    row!("StartTask", run::start_task),
    row!("DescribeTasks", task::describe),
    row!("ListTasks", task::list),
    row!("StopTask", task::stop),
    row!("DescribeServiceDeployments", service_deployment::describe),
    row!("DescribeServiceRevisions", service_deployment::describe_revisions),
    row!("ListServiceDeployments", service_deployment::list),
    row!("StopServiceDeployment", service_deployment::stop),
    row!("CreateService", service::create),
    row!("DeleteService", service::delete),
    row!("DescribeServices", service::describe),
    row!("ListServices", service::list),
    row!("ListServicesByNamespace", service::list_by_namespace),
    row!("UpdateService", service::update),
    row!("GetTaskProtection", protection::get),
    row!("UpdateTaskProtection", protection::update),
    row!("CreateTaskSet", external::create_task_set),
    row!("DeleteTaskSet", external::no_task_set),
    row!("DescribeTaskSets", external::describe_task_sets),
    row!("UpdateServicePrimaryTaskSet", external::no_task_set),
    row!("UpdateTaskSet", external::no_task_set),
    row!("DiscoverPollEndpoint", external::agent),
    row!("RegisterContainerInstance", external::agent),
    row!("SubmitAttachmentStateChanges", external::agent),
    row!("SubmitContainerStateChange", external::agent),
    row!("SubmitTaskStateChange", external::agent),
    row!("UpdateContainerAgent", external::update_agent),
    row!("DeregisterContainerInstance", instance_ops::deregister),
    row!("DescribeContainerInstances", instance_ops::describe),
    row!("ListContainerInstances", instance_ops::list),
    row!("UpdateContainerInstancesState", instance_ops::update_state),
    row!("DeleteAttributes", attribute::delete),
    row!("ListAttributes", attribute::list),
    row!("PutAttributes", attribute::put),
    row!("ListTagsForResource", tag::list),
    row!("TagResource", tag::tag),
    row!("UntagResource", tag::untag),
    row!("DeleteAccountSetting", account_setting::delete),
    row!("ListAccountSettings", account_setting::list),
    row!("PutAccountSetting", account_setting::put),
    row!("PutAccountSettingDefault", account_setting::put_default),
];
