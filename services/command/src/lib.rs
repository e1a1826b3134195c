pub mod committer;
