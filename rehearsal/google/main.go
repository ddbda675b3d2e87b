// A metadata server, which gives each machine or pod of a rehearsed Google Cloud a token of its account, and Google's
// API, which only accepts these tokens. Of Cloud Storage, it has the buckets to which the cloud has granted that account
// access. Of Compute Engine, it starts and stops instances on which the account has a custom role with the permission;
// DASKSTACK_REHEARSAL_MACHINES says how, and this runs in the network namespace of the program's parent.
//
//	google CLOUD METADATA STORAGE BUCKET...
//
// CLOUD is the folder of the cloud's records; its file pods.json, if any, maps addresses of pods to IAM members. METADATA and STORAGE are addresses to listen on, such as :8001. In each
// BUCKET is an object `greeting` that contains the bucket's name.
package main

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/fsouza/fake-gcs-server/fakestorage"
)

type record struct {
	Outputs struct {
		NetworkInterfaces []struct{ NetworkIp string }
		ServiceAccount    struct{ Email string }
		Permissions       []string
	}
}

var (
	cloud   string
	members sync.Map // the IAM member of each token
	busy    sync.Map // the status of each instance that is starting or stopping
	vm      = regexp.MustCompile(`^/compute/v1/(projects/[^/]+/zones/[^/]+/instances/[a-z0-9-]+)(?:/(start|stop))?$`)
	inside  = regexp.MustCompile(`^/(?:download/|upload/)?storage/v1/b/([^/]+)/o(?:/|$)`)
)

// memberAt is the IAM member of the pod or machine with this address, or empty.
func memberAt(address string) string {
	pods := map[string]string{}
	if text, err := os.ReadFile(filepath.Join(cloud, "pods.json")); err == nil {
		json.Unmarshal(text, &pods)
	}
	if pods[address] != "" {
		return pods[address]
	}
	files, _ := filepath.Glob(filepath.Join(cloud, "projects/*/zones/*/instances/*.json"))
	for _, file := range files {
		var found record
		if text, err := os.ReadFile(file); err != nil || json.Unmarshal(text, &found) != nil {
			continue
		}
		for _, each := range found.Outputs.NetworkInterfaces {
			if each.NetworkIp == address {
				return "serviceAccount:" + found.Outputs.ServiceAccount.Email
			}
		}
	}
	return ""
}

func metadata(answer http.ResponseWriter, request *http.Request) {
	address, _, _ := net.SplitHostPort(request.RemoteAddr)
	member, path := memberAt(address), request.URL.Path
	answer.Header().Set("Metadata-Flavor", "Google")
	switch {
	case path == "/":
	case request.Header.Get("Metadata-Flavor") != "Google":
		http.Error(answer, "Metadata-Flavor is missing", http.StatusForbidden)
	case path == "/computeMetadata/v1/project/project-id":
		fmt.Fprint(answer, "my-project")
	case member == "":
		http.NotFound(answer, request)
	case strings.HasSuffix(path, "/token"):
		token := rand.Text()
		members.Store(token, member)
		reply(answer, http.StatusOK, map[string]any{"access_token": token, "expires_in": 3600, "token_type": "Bearer"})
	case strings.HasPrefix(path, "/computeMetadata/v1/instance/service-accounts/"):
		reply(answer, http.StatusOK, map[string]any{"email": "default", "scopes": []string{}, "aliases": []string{"default"}})
	default:
		http.NotFound(answer, request)
	}
}

func granted(bucket, role string, member any) bool {
	_, err := os.Stat(filepath.Join(cloud, "b", bucket, "roles", "storage."+role, fmt.Sprint(member, ".json")))
	return err == nil
}

// guarded lets a request to a bucket's objects pass if the caller has a role that allows it.
func guarded(storage http.Handler) http.HandlerFunc {
	return func(answer http.ResponseWriter, request *http.Request) {
		token := strings.TrimPrefix(request.Header.Get("Authorization"), "Bearer ")
		member, known := members.Load(token)
		found := inside.FindStringSubmatch(request.URL.Path)
		instance := vm.FindStringSubmatch(request.URL.Path)
		reads := request.Method == http.MethodGet || request.Method == http.MethodHead
		switch {
		case !known:
			refuse(answer, http.StatusUnauthorized, "the request has no valid token")
		case instance != nil:
			compute(answer, request, instance[1], instance[2], fmt.Sprint(member))
		case found != nil && (granted(found[1], "objectUser", member) || reads && granted(found[1], "objectViewer", member)):
			storage.ServeHTTP(answer, request)
		default:
			refuse(answer, http.StatusForbidden, fmt.Sprintf("%s does not have this access", member))
		}
	}
}

// permitted says whether a custom role that the member has on this instance contains the permission.
func permitted(instance, permission, member string) bool {
	grants, _ := filepath.Glob(filepath.Join(cloud, instance, "projects/*/roles/*", member+".json"))
	for _, grant := range grants {
		role, _ := filepath.Rel(filepath.Join(cloud, instance), filepath.Dir(grant))
		var found record
		text, err := os.ReadFile(filepath.Join(cloud, role+".json"))
		if err == nil && json.Unmarshal(text, &found) == nil && slices.Contains(found.Outputs.Permissions, permission) {
			return true
		}
	}
	return false
}

// compute answers a request for an instance. Like Google, it does not wait until the instance has started or stopped.
func compute(answer http.ResponseWriter, request *http.Request, instance, action, member string) {
	method, permission := http.MethodPost, "compute.instances."+action
	if action == "" {
		method, permission = http.MethodGet, "compute.instances.get"
	}
	_, err := os.Stat(filepath.Join(cloud, instance+".json"))
	switch {
	case request.Method != method:
		http.NotFound(answer, request)
	case !permitted(instance, permission, member):
		refuse(answer, http.StatusForbidden, fmt.Sprintf("Required '%s' permission for '%s'", permission, instance))
	case err != nil:
		refuse(answer, http.StatusNotFound, fmt.Sprintf("The resource '%s' was not found", instance))
	case action == "":
		status, found := busy.Load(instance)
		if !found {
			output, err := machine("status", instance)
			if err != nil {
				refuse(answer, http.StatusInternalServerError, err.Error())
				return
			}
			status = strings.TrimSpace(output)
		}
		reply(answer, http.StatusOK, map[string]any{"name": filepath.Base(instance), "status": status})
	default:
		status := map[string]string{"start": "STAGING", "stop": "STOPPING"}[action]
		if _, found := busy.LoadOrStore(instance, status); found {
			refuse(answer, http.StatusBadRequest, fmt.Sprintf("The resource '%s' is not ready", instance))
			return
		}
		go func() {
			if _, err := machine(action, instance); err != nil {
				log.Print(err)
			}
			busy.Delete(instance)
		}()
		reply(answer, http.StatusOK, map[string]any{"operationType": action, "status": "RUNNING"})
	}
}

// machine runs a command of rehearsal.compute and returns its output.
func machine(words ...string) (string, error) {
	var how struct {
		Command []string
		Cwd     string
	}
	if err := json.Unmarshal([]byte(os.Getenv("DASKSTACK_REHEARSAL_MACHINES")), &how); err != nil {
		return "", err
	}
	enter := []string{fmt.Sprintf("--net=/proc/%d/ns/net", os.Getppid()), "--"}
	command := exec.Command("nsenter", slices.Concat(enter, how.Command, words)...)
	command.Dir, command.Stderr = how.Cwd, os.Stderr
	output, err := command.Output()
	return string(output), err
}

func refuse(answer http.ResponseWriter, status int, message string) {
	reply(answer, status, map[string]any{"error": map[string]any{"code": status, "message": message}})
}

func reply(answer http.ResponseWriter, status int, content any) {
	answer.Header().Set("Content-Type", "application/json")
	answer.WriteHeader(status)
	json.NewEncoder(answer).Encode(content)
}

func main() {
	cloud = os.Args[1]
	objects := []fakestorage.Object{}
	for _, bucket := range os.Args[4:] {
		attributes := fakestorage.ObjectAttrs{BucketName: bucket, Name: "greeting"}
		objects = append(objects, fakestorage.Object{ObjectAttrs: attributes, Content: []byte(bucket)})
	}
	storage, err := fakestorage.NewServerWithOptions(fakestorage.Options{NoListener: true, InitialObjects: objects})
	if err != nil {
		log.Fatal(err)
	}
	go func() { log.Fatal(http.ListenAndServe(os.Args[2], http.HandlerFunc(metadata))) }()
	log.Fatal(http.ListenAndServe(os.Args[3], guarded(storage.HTTPHandler())))
}
