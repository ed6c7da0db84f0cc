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

use crate::operation;
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
    operation!("CreateCluster", cluster::create),
    operation!("DeleteCluster", cluster::delete),
    operation!("DescribeClusters", cluster::describe),
    operation!("ListClusters", cluster::list),
    operation!("PutClusterCapacityProviders", cluster::put_capacity_providers),
    operation!("UpdateCluster", cluster::update),
    operation!("UpdateClusterSettings", cluster::update_settings),
    operation!("CreateCapacityProvider", capacity_provider::create),
    operation!("DeleteCapacityProvider", capacity_provider::delete),
    operation!("DescribeCapacityProviders", capacity_provider::describe),
    operation!("UpdateCapacityProvider", capacity_provider::update),
    operation!("DeleteTaskDefinitions", task_definition::delete),
    operation!("DeregisterTaskDefinition", task_definition::deregister),
    operation!("DescribeTaskDefinition", task_definition::describe),
    operation!("ListTaskDefinitionFamilies", task_definition::list_families),
    operation!("ListTaskDefinitions", task_definition::list),
    operation!("RegisterTaskDefinition", task_definition::register),
    operation!("RunTask", run::run_task),
    operation!("StartTask", run::start_task),
    operation!("DescribeTasks", task::describe),
    operation!("ListTasks", task::list),
    operation!("StopTask", task::stop),
    operation!("DescribeServiceDeployments", service_deployment::describe),
    operation!("DescribeServiceRevisions", service_deployment::describe_revisions),
    operation!("ListServiceDeployments", service_deployment::list),
    operation!("StopServiceDeployment", service_deployment::stop),
    operation!("CreateService", service::create),
    operation!("DeleteService", service::delete),
    operation!("DescribeServices", service::describe),
    operation!("ListServices", service::list),
    operation!("ListServicesByNamespace", service::list_by_namespace),
    operation!("UpdateService", service::update),
    operation!("GetTaskProtection", protection::get),
    operation!("UpdateTaskProtection", protection::update),
    operation!("CreateTaskSet", external::create_task_set),
    operation!("DeleteTaskSet", external::no_task_set),
    operation!("DescribeTaskSets", external::describe_task_sets),
    operation!("UpdateServicePrimaryTaskSet", external::no_task_set),
    operation!("UpdateTaskSet", external::no_task_set),
    operation!("DiscoverPollEndpoint", external::agent),
    operation!("RegisterContainerInstance", external::agent),
    operation!("SubmitAttachmentStateChanges", external::agent),
    operation!("SubmitContainerStateChange", external::agent),
    operation!("SubmitTaskStateChange", external::agent),
    operation!("UpdateContainerAgent", external::update_agent),
    operation!("DeregisterContainerInstance", instance_ops::deregister),
    operation!("DescribeContainerInstances", instance_ops::describe),
    operation!("ListContainerInstances", instance_ops::list),
    operation!("UpdateContainerInstancesState", instance_ops::update_state),
    operation!("DeleteAttributes", attribute::delete),
    operation!("ListAttributes", attribute::list),
    operation!("PutAttributes", attribute::put),
    operation!("ListTagsForResource", tag::list),
    operation!("TagResource", tag::tag),
    operation!("UntagResource", tag::untag),
    operation!("DeleteAccountSetting", account_setting::delete),
    operation!("ListAccountSettings", account_setting::list),
    operation!("PutAccountSetting", account_setting::put),
    operation!("PutAccountSettingDefault", account_setting::put_default),
];
