// A metadata server, which gives each machine or pod of a rehearsed Google Cloud a token of its account, and a Cloud
// Storage that only accepts these tokens, for buckets to which the cloud has granted that account access.
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
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"github.com/fsouza/fake-gcs-server/fakestorage"
)

type record struct {
	Outputs struct {
		NetworkInterfaces []struct{ NetworkIp string }
		ServiceAccount    struct{ Email string }
	}
}

var (
	cloud   string
	members sync.Map // the IAM member of each token
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
		reads := request.Method == http.MethodGet || request.Method == http.MethodHead
		switch {
		case !known:
			refuse(answer, http.StatusUnauthorized, "the request has no valid token")
		case found != nil && (granted(found[1], "objectUser", member) || reads && granted(found[1], "objectViewer", member)):
			storage.ServeHTTP(answer, request)
		default:
			refuse(answer, http.StatusForbidden, fmt.Sprintf("%s does not have this access", member))
		}
	}
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
