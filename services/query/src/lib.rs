//! The query service.
mod cache;
