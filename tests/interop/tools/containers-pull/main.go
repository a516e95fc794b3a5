// containers-pull pulls an image as Podman and CRI-O do, with their own libraries in this year's version.
//
//	containers-pull [-arch ARCHITECTURE] NAME
//
// Where images come from and where they are kept is in the files that CONTAINERS_REGISTRIES_CONF and
// CONTAINERS_STORAGE_CONF name; the trust policy is the home directory's. It prints the image's manifest, config and
// the inner digests of its layers as JSON.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"

	"go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/pkg/shortnames"
	"go.podman.io/image/v5/signature"
	is "go.podman.io/image/v5/storage"
	"go.podman.io/image/v5/types"
	"go.podman.io/storage"
	"go.podman.io/storage/pkg/reexec"
)

func main() {
	// the storage library unpacks in a child that is this program again
	if reexec.Init() {
		return
	}
	architecture := flag.String("arch", "amd64", "the architecture to choose")
	flag.Parse()
	if err := pull(context.Background(), flag.Arg(0), *architecture); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func pull(ctx context.Context, name, architecture string) error {
	system := &types.SystemContext{ArchitectureChoice: architecture, OSChoice: "linux"}
	resolved, err := shortnames.Resolve(system, name)
	if err != nil {
		return err
	}
	policy, err := signature.DefaultPolicy(system)
	if err != nil {
		return err
	}
	trust, err := signature.NewPolicyContext(policy)
	if err != nil {
		return err
	}
	defer trust.Destroy()

	var failures []error
	for _, candidate := range resolved.PullCandidates {
		if err := pullFrom(ctx, system, trust, candidate.Value); err != nil {
			failures = append(failures, err)
			continue
		}
		return candidate.Record()
	}
	return resolved.FormatPullErrors(failures)
}

func pullFrom(ctx context.Context, system *types.SystemContext, trust *signature.PolicyContext, name reference.Named) error {
	source, err := docker.NewReference(name)
	if err != nil {
		return err
	}
	options, err := storage.DefaultStoreOptions()
	if err != nil {
		return err
	}
	store, err := storage.GetStore(options)
	if err != nil {
		return err
	}
	defer store.Shutdown(true)
	target, err := is.Transport.ParseStoreReference(store, name.String())
	if err != nil {
		return err
	}
	copied, err := copy.Image(ctx, trust, target, source, &copy.Options{SourceCtx: system, DestinationCtx: system})
	if err != nil {
		return err
	}
	return describe(ctx, system, target, copied)
}

func describe(ctx context.Context, system *types.SystemContext, target types.ImageReference, copied []byte) error {
	digest, err := manifest.Digest(copied)
	if err != nil {
		return err
	}
	held, err := target.NewImage(ctx, system)
	if err != nil {
		return err
	}
	defer held.Close()
	config, err := held.OCIConfig(ctx)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"manifest": digest,
		"config":   held.ConfigInfo().Digest,
		"layers":   config.RootFS.DiffIDs,
	})
}
