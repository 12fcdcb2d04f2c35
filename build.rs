//! Compiles `proto/` without protoc, and keeps the descriptors for server reflection.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "stepwell/v1/common.proto",
        "stepwell/v1/execution_service.proto",
        "stepwell/v1/step_service.proto",
        "stepwell/v1/artifact_service.proto",
        "stepwell/v1/metric_service.proto",
        "stepwell/v1/search_service.proto",
        "stepwell/v1/configuration_service.proto",
        "stepwell/v1/ingest_service.proto",
        "stepwell/v1/admin_service.proto",
        "stepwell/v1/analytics_service.proto",
    ];
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=third_party");

    let descriptors = protox::compile(files, ["proto", "third_party"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), prost::Message::encode_to_vec(&descriptors))?;
    let mut config = tonic_prost_build::Config::new();
    config.enable_type_names();
    tonic_prost_build::configure()
        // Slices of what was received, not copies of it.
        .bytes(".stepwell.v1.UploadArtifactRequest.chunk")
        .bytes(".stepwell.v1.DownloadArtifactResponse.chunk")
        .extern_path(".google.rpc.Status", "::tonic_types::Status")
        // Requests are weighed before they are decoded, by their names.
        .codec_path("crate::rpc::codec::Codec")
        .compile_fds_with_config(descriptors, config)?;
    Ok(())
}
