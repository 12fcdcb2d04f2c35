//! Compiles `proto/` without protoc, and keeps the descriptors for server reflection.

use std::fs;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=third_party");

    let mut files = fs::read_dir("proto/stepwell/v1")?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "proto"));
    // Folders list their files in any order, and the descriptors have to be the same on every machine.
    files.sort();

    let descriptors = protox::compile(files, ["proto", "third_party"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), prost::Message::encode_to_vec(&descriptors))?;
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
