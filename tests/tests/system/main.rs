//! The system as a whole, over real servers, processes and sockets.

mod architecture;
mod audit;
mod away;
mod bad_input;
mod command_replicas;
mod faults;
mod flash_sale;
mod growing;
mod hostile_connections;
mod idempotency;
mod linearizability;
mod migrations;
mod monitoring;
mod one_order;
mod other_languages;
mod overload;
mod parked;
mod projector_replicas;
mod rendered;
mod replicas;
mod restore;
mod saga_replicas;
mod sessions;
mod shards;
mod trace;
mod watch;
