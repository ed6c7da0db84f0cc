//! The ECS controllers: tasks, services, deployments, capacity. Each is a decision over a snapshot and a shell.
