//! The load-balancer data plane: L4 and L7 listeners whose configuration is a value.
