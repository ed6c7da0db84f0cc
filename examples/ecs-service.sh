#!/bin/sh
# Three nginx tasks on Fargate behind an application load balancer: eval "$(gantry env)"; examples/ecs-service.sh
# Needs the image: gantry image load "$(cargo xtask image nginx)"
set -eu
here=$(dirname "$0")
subnets=$(echo "$GANTRY_SUBNETS" | tr , ' ')
aws() { command aws --endpoint-url "$AWS_ENDPOINT_URL" --output text "$@"; }

aws ecs create-cluster --cluster-name prod --query cluster.clusterArn
aws ecs register-task-definition --cli-input-json "file://$here/fargate-nginx.json" \
    --query taskDefinition.taskDefinitionArn

# shellcheck disable=SC2086
balancer=$(aws elbv2 create-load-balancer --name web --type application --subnets $subnets \
    --query 'LoadBalancers[0].LoadBalancerArn')
vpc=$(aws elbv2 describe-load-balancers --load-balancer-arns "$balancer" --query 'LoadBalancers[0].VpcId')
group=$(aws elbv2 create-target-group --name web --protocol HTTP --port 80 --target-type ip --vpc-id "$vpc" \
    --health-check-interval-seconds 5 --health-check-timeout-seconds 2 --query 'TargetGroups[0].TargetGroupArn')
aws elbv2 create-listener --load-balancer-arn "$balancer" --protocol HTTP --port "${PORT:-8000}" \
    --default-actions "Type=forward,TargetGroupArn=$group" --query 'Listeners[0].ListenerArn'

aws ecs create-service --cluster prod --service-name web --task-definition fargate-nginx --desired-count 3 \
    --launch-type FARGATE \
    --network-configuration "awsvpcConfiguration={subnets=[$GANTRY_SUBNETS],securityGroups=[$GANTRY_SECURITY_GROUP]}" \
    --load-balancers "targetGroupArn=$group,containerName=nginx,containerPort=80" --query service.serviceArn
aws ecs wait services-stable --cluster prod --services web
aws ecs describe-services --cluster prod --services web --query 'services[0].events[].message' | tr '\t' '\n'
