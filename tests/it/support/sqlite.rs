//! SQLite databases in directories of their own.

use super::{
    database::{Engine, TestDatabase},
    directory::Directory,
};

/// An empty SQLite file, removed with the value.
pub(crate) fn database() -> TestDatabase {
    let directory = Directory::new(None);
    let path = directory.path().join("provider.db");
    std::fs::File::create_new(&path).expect("the directory is new and writable");
    let name = path
        .to_str()
        .expect("the temporary directory's path is UTF-8")
        .to_owned();
    TestDatabase {
        engine: Engine::Sqlite,
        url: format!("sqlite://{name}"),
        name,
        _directory: Some(directory),
    }
}
