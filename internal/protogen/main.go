// Protogen compiles the .proto files of a directory to Go with the plugins
// that go.mod pins, so that generating needs nothing beyond Go.
//
//	go run github.com/flotilla-kv/flotilla/internal/protogen ROOT FILE...
//
// ROOT is the import root of the protobuf files, FILEs are relative to it, and
// the output lands beside them.
package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/protoutil"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: protogen ROOT FILE...")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "protogen:", err)
		os.Exit(1)
	}
}

// plugin turns files into Go.
type plugin struct {
	name      string
	parameter string
	only      []string // base names of the files it is for; nil: all
}

// plugins make the messages, the services, and, for the messages that there are
// many of, an encoding without reflection. The unsafe decoding shares the
// memory of what it decodes.
var plugins = []plugin{
	{name: "protoc-gen-go"},
	{name: "protoc-gen-go-grpc"},
	{name: "protoc-gen-go-vtproto", parameter: ",features=marshal+size+unmarshal+unmarshal_unsafe", only: []string{"kv.proto"}},
	{name: "protoc-gen-go-vtproto", parameter: ",features=marshal+size+unmarshal_unsafe", only: []string{"raft.proto"}},
}

func (p plugin) files(all []string) []string {
	if p.only == nil {
		return all
	}
	return slices.DeleteFunc(slices.Clone(all), func(file string) bool { return !slices.Contains(p.only, path.Base(file)) })
}

func run(root string, files []string) error {
	descriptors, err := compile(root, files)
	if err != nil {
		return err
	}
	for _, plugin := range plugins {
		request := &pluginpb.CodeGeneratorRequest{
			FileToGenerate: plugin.files(files),
			Parameter:      proto.String("paths=source_relative" + plugin.parameter),
			ProtoFile:      descriptors,
		}
		response, err := generate(plugin.name, request)
		if err != nil {
			return fmt.Errorf("%s: %w", plugin.name, err)
		}
		for _, file := range response.File {
			name := filepath.Join(root, filepath.FromSlash(file.GetName()))
			if err := os.WriteFile(name, []byte(file.GetContent()), 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// compile parses the files, comments kept, into descriptors.
func compile(root string, files []string) ([]*descriptorpb.FileDescriptorProto, error) {
	compiler := protocompile.Compiler{
		Resolver:       &protocompile.SourceResolver{ImportPaths: []string{root}},
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	linked, err := compiler.Compile(context.Background(), files...)
	if err != nil {
		return nil, err
	}
	var descriptors []*descriptorpb.FileDescriptorProto
	for _, file := range linked {
		descriptors = append(descriptors, protoutil.ProtoFromFileDescriptor(file))
	}
	return descriptors, nil
}

// generate runs one plugin as protoc would.
func generate(plugin string, request *pluginpb.CodeGeneratorRequest) (*pluginpb.CodeGeneratorResponse, error) {
	input, err := proto.Marshal(request)
	if err != nil {
		return nil, err
	}
	command := exec.Command("go", "tool", plugin)
	command.Stdin = bytes.NewReader(input)
	command.Stderr = os.Stderr
	output, err := command.Output()
	if err != nil {
		return nil, err
	}
	response := new(pluginpb.CodeGeneratorResponse)
	if err := proto.Unmarshal(output, response); err != nil {
		return nil, err
	}
	if response.Error != nil {
		return nil, fmt.Errorf("%s", response.GetError())
	}
	return response, nil
}
