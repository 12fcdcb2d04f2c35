//! Names to addresses.

use std::io;
use std::net::IpAddr;

use async_trait::async_trait;

/// Addresses looked at of one name.
const ADDRESSES: usize = 16;

/// Tells the addresses of a name.
#[async_trait]
pub trait Resolve: Send + Sync + 'static {
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>>;
}

/// As the system does for every program.
pub struct SystemResolver;

#[async_trait]
impl Resolve for SystemResolver {
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let found = tokio::net::lookup_host((name, 0)).await?;
        Ok(found.map(|address| address.ip()).take(ADDRESSES).collect())
    }
}
