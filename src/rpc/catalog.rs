//! What this server serves, read off the descriptors: the one list of services and their methods. Health, reflection,
//! the observation of calls and the features of GetServerInfo take it from here.

use std::sync::LazyLock;

use prost::Message as _;
use prost_types::FileDescriptorSet;

use crate::proto;

/// One service of gRPC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// With its package, as in the path of a call.
    pub name: String,
    pub methods: Vec<String>,
}

/// Every descriptor that reflection shows: the API, what is served beside it, and the details of errors, so that clients
/// that live off reflection can read those too.
pub const DESCRIPTOR_SETS: [&[u8]; 5] = [
    proto::DESCRIPTORS,
    tonic_health::pb::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    tonic_types::pb::FILE_DESCRIPTOR_SET,
];

/// The services of the API, in the order of their files.
pub fn api() -> &'static [Service] {
    static API: LazyLock<Vec<Service>> = LazyLock::new(|| described(proto::DESCRIPTORS));
    &API
}

/// Every service that is served: the API, health and reflection.
pub fn all() -> impl Iterator<Item = Service> {
    DESCRIPTOR_SETS.into_iter().flat_map(described)
}

fn described(set: &[u8]) -> Vec<Service> {
    let set = FileDescriptorSet::decode(set).expect("descriptors that a build has encoded");
    let services = |file: prost_types::FileDescriptorProto| {
        let package = file.package().to_owned();
        file.service.into_iter().map(move |service| Service {
            name: format!("{package}.{}", service.name()),
            methods: service.method.iter().map(|method| method.name().to_owned()).collect(),
        })
    };
    set.file.into_iter().flat_map(services).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_descriptors_list_the_api_and_what_is_served_beside_it() {
        let api: Vec<&str> = api().iter().map(|service| service.name.as_str()).collect();
        let all: Vec<String> = all().map(|service| service.name).collect();
        assert!(api.contains(&"stepwell.v1.SearchService"), "{api:?}");
        assert!(api.iter().all(|name| name.starts_with("stepwell.v1.")), "{api:?}");
        for name in [
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
        ] {
            assert_eq!(all.iter().filter(|found| *found == name).count(), 1, "{all:?}");
        }
        assert_eq!(all.len(), api.len() + 3, "{all:?}");
    }
}
